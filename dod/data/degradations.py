"""Five synthetic degradations of a clean photograph, each a pure function of an image and a random generator.

A parameter that is not given is drawn from its training range. All parameters are drawn in a fixed order whether given
or not, so fixing one does not change the others. Passing the returned parameters back with an equally seeded generator
repeats the result exactly.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dod.data.images import FloatImage
from dod.data.kernels import convolve, random_kernel, streaks
from dod.errors import DataError

__all__ = ["DEGRADATIONS", "blur", "degrade", "depth_map", "haze", "low_light", "noise", "rain", "rng_for"]

Degraded = tuple[FloatImage, dict[str, Any]]
"""A degraded image and the parameters of its degradation."""

_SCENE = 512
"""Minimum width and height in px of the scene that a depth map is a window of."""
_DEPTH_GRID = 6
"""Random depths per axis of the scene, interpolated to its size."""


def rng_for(name: str, degradation: str, seed: int) -> np.random.Generator:
    """Return a random generator that depends on the image, the degradation and the seed only.

    Args:
        name: name of the image.
        degradation: name of the degradation.
        seed: seed of the whole set.

    Returns:
        The generator.
    """
    key = hashlib.sha256(f"{seed}\0{degradation}\0{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))


def degrade(image: FloatImage, name: str, rng: np.random.Generator, **fixed: Any) -> Degraded:
    """Apply a degradation to an image.

    Args:
        image: float32 [H, W, 3] in 0 to 1.
        name: one of `DEGRADATIONS`.
        rng: source of the parameters that are not fixed.
        **fixed: parameters of the degradation's function.

    Returns:
        The degraded image, float32 [H, W, 3] on uint8 levels k/255, and all parameters used.

    Raises:
        DataError: unknown degradation or parameter, or an image of another shape, dtype or range.

    Example:
        >>> image = np.full((8, 8, 3), 0.5, np.float32)
        >>> degraded, parameters = degrade(image, "noise", np.random.default_rng(0), sigma=25)
        >>> degraded.shape, parameters
        ((8, 8, 3), {'sigma': 25})
    """
    if name not in _FUNCTIONS:
        raise DataError(f"unknown degradation {name!r}: it is one of {', '.join(DEGRADATIONS)}")
    function = _FUNCTIONS[name]
    known = [parameter for parameter in inspect.signature(function).parameters if parameter not in ("image", "rng")]
    if unknown := sorted(set(fixed) - set(known)):
        raise DataError(f"{name} has no parameter {unknown[0]!r}: it has {', '.join(known)}")
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"expected a float32 image [H, W, 3], got {image.dtype} {list(image.shape)}")
    lowest, highest = image.min(), image.max()
    if not (lowest >= 0 and highest <= 1):
        raise DataError(f"expected values between 0 and 1, got {lowest:g} to {highest:g}")
    return function(image, rng, **fixed)


def haze(
    image: FloatImage,
    rng: np.random.Generator,
    *,
    beta: float | None = None,
    airlight: float | None = None,
    depth: NDArray[np.float32] | None = None,
) -> Degraded:
    """Add haze: I = J t + A (1 - t), t = exp(-beta d) (Koschmieder 1924; Narasimhan and Nayar 2002).

    Args:
        image: J, float32 [H, W, 3] in 0 to 1.
        rng: source of the parameters that are not given.
        beta: scattering coefficient, 0.5 to 1.5.
        airlight: A, 0.8 to 1, the same for all channels.
        depth: d, float32 [H, W] in 0.1 to 1; drawn by `depth_map` by default.

    Returns:
        I, float32 [H, W, 3], and the parameters.

    Raises:
        DataError: the depth has another size than the image.
    """
    beta = _uniform(rng, 0.5, 1.5, beta)
    airlight = _uniform(rng, 0.8, 1.0, airlight)
    drawn = depth_map(image.shape[:2], rng)
    depth = drawn if depth is None else depth
    if depth.shape != image.shape[:2]:
        raise DataError(f"the depth must be [H, W] = {list(image.shape[:2])} like the image, not {list(depth.shape)}")
    transmission = np.exp(-beta * depth)[..., None]
    hazy = image * transmission + airlight * (1 - transmission)
    return _quantize(hazy), {"beta": beta, "airlight": airlight, "depth": depth}


def rain(
    image: FloatImage,
    rng: np.random.Generator,
    *,
    angle: float | None = None,
    length: float | None = None,
    width: float | None = None,
    density: float | None = None,
    strength: float | None = None,
    veil: float | None = None,
) -> Degraded:
    """Add rain: I = J (1 - v) + 0.8 v + s R, the additive model of Rain100L (Yang et al. 2017) with a slight veil v.

    R is drawn by `dod.data.kernels.streaks`.

    Args:
        image: J, float32 [H, W, 3] in 0 to 1.
        rng: source of R and of the parameters that are not given.
        angle: direction of the streaks, -35 to 35 degrees from the vertical.
        length: length of the longest streaks, 14 to 48 px.
        width: width of the streaks, 1 to 2.2 px.
        density: 1 to 5 streaks per 1,000 px of area.
        strength: s, 0.25 to 0.7.
        veil: v, 0 to 0.05.

    Returns:
        I, float32 [H, W, 3], and the parameters.
    """
    angle = _uniform(rng, -35, 35, angle)
    length = _uniform(rng, 14, 48, length)
    width = _uniform(rng, 1.0, 2.2, width)
    density = _uniform(rng, 1.0, 5.0, density)
    strength = _uniform(rng, 0.25, 0.7, strength)
    veil = _uniform(rng, 0.0, 0.05, veil)
    field = streaks(image.shape[:2], rng, angle, length, width, density)
    rainy = image * (1 - veil) + 0.8 * veil + strength * field[..., None]
    parameters = {"angle": angle, "length": length, "width": width}
    return _quantize(rainy), parameters | {"density": density, "strength": strength, "veil": veil}


def noise(image: FloatImage, rng: np.random.Generator, *, sigma: float | None = None) -> Degraded:
    """Add Gaussian noise and truncate to uint8, as denoising benchmarks do: I = floor(clip(J + sigma N)).

    Args:
        image: J, float32 [H, W, 3] in 0 to 1.
        rng: source of N, and of sigma unless it is given.
        sigma: standard deviation in uint8 levels, 1 to 60.

    Returns:
        I, float32 [H, W, 3], and the parameters.
    """
    sigma = _uniform(rng, 1, 60, sigma)
    noisy = image * 255 + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.floor(np.clip(noisy, 0, 255)).astype(np.float32) / np.float32(255), {"sigma": sigma}


def blur(image: FloatImage, rng: np.random.Generator, *, kernel: NDArray[np.float32] | None = None) -> Degraded:
    """Blur an image: I = k * J.

    Args:
        image: J, float32 [H, W, 3] in 0 to 1.
        rng: source of the kernel unless it is given.
        kernel: k, float32 [k, k], k odd, sum 1; by default motion or defocus, drawn by
            `dod.data.kernels.random_kernel`.

    Returns:
        I, float32 [H, W, 3], and the parameters.
    """
    drawn = random_kernel(rng)
    kernel = drawn if kernel is None else kernel
    return _quantize(convolve(image, kernel)), {"kernel": kernel}


def low_light(
    image: FloatImage,
    rng: np.random.Generator,
    *,
    exposure: float | None = None,
    gamma: float | None = None,
    shot: float | None = None,
    read: float | None = None,
) -> Degraded:
    """Darken an image and add signal-dependent sensor noise (Foi et al. 2008).

    I = L + n with L = e J^gamma and n ~ N(0, a L + b^2).

    Args:
        image: J, float32 [H, W, 3] in 0 to 1.
        rng: source of n and of the parameters that are not given.
        exposure: e, 0.1 to 0.4, log-uniform.
        gamma: 1 to 1.4.
        shot: shot noise a, 0.0002 to 0.0015.
        read: read noise b, 0.001 to 0.006.

    Returns:
        I, float32 [H, W, 3], and the parameters.
    """
    drawn = float(np.exp(rng.uniform(np.log(0.1), np.log(0.4))))
    exposure = drawn if exposure is None else exposure
    gamma = _uniform(rng, 1.0, 1.4, gamma)
    shot = _uniform(rng, 0.0002, 0.0015, shot)
    read = _uniform(rng, 0.001, 0.006, read)
    light = np.float32(exposure) * image ** np.float32(gamma)
    deviation = np.sqrt(np.float32(shot) * light + np.float32(read**2))
    dark = light + deviation * rng.standard_normal(image.shape, dtype=np.float32)
    return _quantize(dark), {"exposure": exposure, "gamma": gamma, "shot": shot, "read": read}


def depth_map(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a smooth depth map: farther towards the top, tilted, with low-frequency variation.

    The map is a random window of a scene at least 512 px wide and high. A training crop thus has the narrow range of
    depths that it would have inside a whole photograph.

    Args:
        shape: (height, width, ...) in px.
        rng: source of randomness.

    Returns:
        float32 [H, W] in 0.1 to 1.
    """
    height, width = shape[:2]
    scene_height, scene_width = max(height, _SCENE), max(width, _SCENE)
    rows, columns = np.mgrid[1 : -1 : _DEPTH_GRID * 1j, -1 : 1 : _DEPTH_GRID * 1j]
    tilt = rng.uniform(-0.5, 0.5)
    coarse = rows + tilt * columns + 0.35 * rng.standard_normal((_DEPTH_GRID, _DEPTH_GRID))
    coarse = (coarse - coarse.min()) / (coarse.max() - coarse.min())
    top, left = rng.uniform(0, scene_height - height), rng.uniform(0, scene_width - width)
    window = np.array([left, top, left + width, top + height]) * _DEPTH_GRID
    box = tuple(np.clip(window / [scene_width, scene_height, scene_width, scene_height], 0, _DEPTH_GRID).tolist())
    field = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.float32(0.1) + np.float32(0.9) * np.clip(np.asarray(field, dtype=np.float32), 0, 1)


def _uniform(rng: np.random.Generator, low: float, high: float, fixed: float | None) -> float:
    """Return `fixed`, or a uniform draw. Always draws, so that a fixed value does not change later draws."""
    drawn = float(rng.uniform(low, high))
    return drawn if fixed is None else fixed


def _quantize(image: NDArray[np.floating]) -> FloatImage:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.float32) / np.float32(255)


_FUNCTIONS: dict[str, Callable[..., Degraded]] = {
    "haze": haze,
    "rain": rain,
    "noise": noise,
    "blur": blur,
    "low-light": low_light,
}
DEGRADATIONS: tuple[str, ...] = tuple(_FUNCTIONS)
"""Names of the degradations."""
