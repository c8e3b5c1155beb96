"""What a user would reach for without a network: one classical method for each degradation, to stand beside the bundle.

All are blind: they see the degraded image alone, never the parameters it was made with. Their constants were chosen
on the training photographs (`python -m dod.data.photographs`), like a model's weights, never on those of the table.

Where rain falls nearly upright, as in `dod.data.degradations`, a horizontal grey opening (1 x 5 px) is a stronger
filter than the median: 32.6 dB against 29.7 dB on the training photographs. It is no filter that users reach for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dod_runtime.errors import UsageError

__all__ = ["METHODS", "Method", "classical"]

Pixels = NDArray[np.uint8]
Array = NDArray[Any]


@dataclass(frozen=True)
class Method:
    """A classical method. run: float32 [H, W, 3] in 0..1 -> the same, not yet clipped."""

    name: str
    run: Callable[[Array], Array]


def classical(image: Pixels, degradation: str) -> Pixels:
    """A degraded image, uint8 [H, W, 3], as the degradation's method restores it.

    Raises UsageError where scikit-image is missing.
    """
    try:
        restored = METHODS[degradation].run(image.astype(np.float32) / np.float32(255))
    except ImportError as error:
        raise UsageError(f"the classical methods need scikit-image ({error}): pip install -e '.[eval]'") from error
    return np.rint(np.clip(restored, 0, 1) * 255).astype(np.uint8)


def non_local_means(image: Array, strength: float = 0.6) -> Array:
    """Buades, Coll and Morel 2005, with the noise level that `noise_level` estimates."""
    from skimage.restoration import denoise_nl_means

    sigma = max(noise_level(image), 1e-3)  # an image without noise would divide by it
    return denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=strength * sigma, sigma=sigma, fast_mode=True, channel_axis=2
    ).astype(np.float32)


def noise_level(image: Array) -> float:
    """The standard deviation of white noise in 0..1, the mean of the channels (Immerkaer 1996).

    A difference of two Laplacians, blind to constant and linear change. (scikit-image's own estimate_sigma needs
    PyWavelets, which it does not bring.)
    """
    from scipy.ndimage import convolve

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)[..., None]
    response = np.abs(convolve(image, kernel, mode="reflect"))
    return float(np.sqrt(np.pi / 2) / 6 * response.mean())


def dark_channel_prior(image: Array, window: int = 3, omega: float = 0.7, least: float = 0.1) -> Array:
    """He, Sun and Tang 2009, t refined by a guided filter (He, Sun and Tang 2013): J = (I - A) / max(t, least) + A.

    window: of the dark channel, in px. omega: how much of the haze is removed. A: the mean colour of the 0.1 % of
    pixels with the brightest dark channel.
    """
    from scipy.ndimage import minimum_filter

    dark = minimum_filter(image.min(axis=2), window, mode="nearest")
    count = max(1, dark.size // 1000)
    airlight = image.reshape(-1, 3)[np.argpartition(dark.ravel(), -count)[-count:]].mean(axis=0)
    airlight = np.maximum(airlight, np.float32(1e-3))
    transmission = 1 - omega * minimum_filter((image / airlight).min(axis=2), window, mode="nearest")
    refined = guided_filter(image.mean(axis=2), transmission, radius=60, epsilon=1e-3)
    return (image - airlight) / np.maximum(refined, least)[..., None] + airlight


def guided_filter(guide: Array, image: Array, radius: int, epsilon: float) -> Array:
    """He, Sun and Tang 2013, equations (5) to (8): `image` [H, W] smoothed along the edges of `guide` [H, W].

    radius: half of the window, in px. epsilon: variance of the guide, in squares of its units, that counts as flat.
    """
    from scipy.ndimage import uniform_filter

    def mean(values: Array) -> Array:
        return uniform_filter(values, 2 * radius + 1, mode="reflect")

    centre, level = mean(guide), mean(image)
    slope = (mean(guide * image) - centre * level) / (mean(guide * guide) - centre * centre + epsilon)
    return mean(slope) * guide + mean(level - slope * centre)


def horizontal_median(image: Array, width: int = 9) -> Array:
    """A median over `width` px of a row, on each channel: rain crosses a row in few pixels."""
    from scipy.ndimage import median_filter

    return median_filter(image, (1, width, 1), mode="reflect")


def richardson_lucy(image: Array, sigma: float = 1.25, iterations: int = 2) -> Array:
    """Richardson 1972 and Lucy 1974 with a fixed Gaussian, for the true kernel is not known. sigma in px."""
    from scipy.ndimage import gaussian_filter

    def blurred(values: Array) -> Array:
        return gaussian_filter(values, (sigma, sigma, 0), mode="reflect")

    estimate = image
    for _ in range(iterations):
        estimate = estimate * blurred(image / np.maximum(blurred(estimate), np.float32(1e-3)))
    return estimate


def levels_and_gamma(image: Array, white: float = 0.999, gamma: float = 0.8) -> Array:
    """(I / w)^gamma, w the quantile `white` of all values: an editor's automatic levels, then its gamma.

    On the training photographs 5 dB better than CLAHE, and 6 dB better than a gamma chosen by the mean brightness.
    """
    brightest = max(float(np.quantile(image, white)), 1e-3)
    return np.clip(image / np.float32(brightest), 0, 1) ** np.float32(gamma)


METHODS: Mapping[str, Method] = {
    "noise": Method("non-local means", non_local_means),
    "haze": Method("dark channel prior", dark_channel_prior),
    "rain": Method("horizontal median", horizontal_median),
    "blur": Method("Richardson-Lucy", richardson_lucy),
    "low-light": Method("levels and gamma", levels_and_gamma),
}
