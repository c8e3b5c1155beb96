"""Second moments of an image and its error, which suffice to fit a sharpening kernel without filtering images.

The error e of a degraded image that a kernel k leaves, |e - k * luma|^2, is a quadratic form in k. Its coefficients are
the correlations of luma and error at each distance, a few hundred numbers for an image of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.kernels import random_kernel
from ..errors import ConfigError
from ..model.postprocess import frequencies

__all__ = ["LEAST", "Moments", "inverse_filters", "moments_of", "turned_orders", "without_mean"]

KERNELS = 3000
"""Number of random blur kernels whose inverses give the initial filters."""
LEAST = 1e-6
"""Minimum squared error of an image, so that that of a clean image is not zero."""


@dataclass(frozen=True)
class Moments:
    """Second moments of N images, for kernels of t x t taps.

    Attributes:
        spectrum: input of the gate's sharpness network, [N, L].
        luma: three times the autocorrelation of the luma, [N, 2 t - 1, 2 t - 1].
        error: correlation of the luma with the error summed over colors, [N, t, t].
        squared: mean squared error summed over colors, [N].
        blurred: True for an image to be sharpened, False for one to be left alone, [N].
    """

    spectrum: Tensor
    luma: Tensor
    error: Tensor
    squared: Tensor
    blurred: Tensor

    def remaining_error(self, kernels: Tensor) -> Tensor:
        """Return the squared error after sharpening, when the filtered luma is added to each image.

        Args:
            kernels: kernel for each image, [N, t, t].

        Returns:
            Mean squared errors summed over colors, [N].
        """
        return (self.squared - 2 * (kernels * self.error).sum((1, 2)) + self.change(kernels)).clamp(min=1e-9)

    def change(self, kernels: Tensor) -> Tensor:
        """Return the mean square of the filtered luma, summed over colors.

        Args:
            kernels: kernel for each image, [N, t, t].

        Returns:
            Mean squares, [N].
        """
        return (_autocorrelation(kernels) * self.luma).sum((1, 2))

    def select(self, which: Tensor, turn: int = 0, order: Tensor | None = None) -> Moments:
        """Return the moments of some images, as if they were rotated or mirrored.

        Args:
            which: indices of the images.
            turn: one of eight rotations and reflections, 0 to 7; 0 is the identity.
            order: permutation of the spectrum by `turn`, see `turned_orders`.

        Returns:
            The moments.
        """
        spectrum = self.spectrum[which] if order is None else self.spectrum[which][:, order]
        luma, error = (_turned(each[which], turn) for each in (self.luma, self.error))
        return Moments(spectrum, luma, error, self.squared[which], self.blurred[which])


def moments_of(degraded: Tensor, clean: Tensor, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the moments of a pair of images.

    Args:
        degraded: [3, H, W] in [-1, 1].
        clean: [3, H, W] in [-1, 1].
        taps: side t of the kernels in pixels, odd.

    Returns:
        luma, error and squared of `Moments`, without the first axis.
    """
    error, luma = clean - degraded, degraded.mean(0)
    squared = (error.square().mean() * len(error)).clamp(min=LEAST)
    spectrum = torch.fft.rfft2(luma - luma.mean())
    against = torch.fft.rfft2((error - error.mean((1, 2), keepdim=True)).sum(0))
    size = tuple(luma.shape)
    own = 3 * _lags(spectrum.abs().square(), size, taps - 1)
    return own, _lags(against.conj() * spectrum, size, taps // 2), squared


def inverse_filters(count: int, taps: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the principal components of the inverses of random blur kernels.

    Args:
        count: number of filters, the mean included.
        taps: side of the filters in pixels, odd.

    Returns:
        The filters, [count, 1, taps, taps], each of norm 1, and their standard deviations, [count].

    Raises:
        ConfigError: `count` is larger than the number of components.
    """
    rng, size, inverses = np.random.default_rng(1), 64, []
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    noise = 2e-3 * (radius / 0.1 + 0.05) ** 2  # relative to an image's power, which falls with the frequency's square
    for _ in range(KERNELS):
        drawn, kernel = random_kernel(rng), np.zeros((size, size))
        reach = drawn.shape[0] // 2
        kernel[: drawn.shape[0], : drawn.shape[0]] = drawn
        transfer = np.fft.fft2(np.roll(kernel, (-reach, -reach), (0, 1)))
        inverse = np.fft.ifft2(np.conj(transfer) / (np.abs(transfer) ** 2 + noise)).real
        inverse[0, 0] -= 1  # the filtered luma is added to the image
        inverses.append(np.roll(inverse, (taps // 2, taps // 2), (0, 1))[:taps, :taps].ravel())
    mean = np.mean(inverses, axis=0)
    _, values, vectors = np.linalg.svd(inverses - mean, full_matrices=False)
    if count - 1 > len(values):
        raise ConfigError(f"filters: {count} is more than the number of taps, {taps} x {taps}")
    norm = np.linalg.norm(mean)
    filters = torch.from_numpy(np.concatenate([mean[None] / norm, vectors[: count - 1]])).float()
    deviations = torch.tensor([norm, *(values[: count - 1] / KERNELS**0.5)], dtype=torch.float32)
    return filters.reshape(count, 1, taps, taps), deviations


def without_mean(filters: Tensor) -> Tensor:
    """Return filters of zero mean, which do not change the brightness of an image.

    Args:
        filters: [F, t, t].
    """
    return filters - filters.mean((1, 2), keepdim=True)


def turned_orders(window: int) -> list[Tensor]:
    """Return the permutation of the spectrum for each of eight rotations and reflections of an image.

    Args:
        window: side of the periodogram's windows in pixels.

    Returns:
        Eight index tensors, [L] each: `spectrum[order]` is the spectrum of the turned image.
    """
    grid = frequencies(window)
    reach = int(grid.abs().max())
    places = torch.full((1, 2 * reach + 1, 2 * reach + 1), -1)
    for sign in (1, -1):
        y, x = (sign * grid + reach).unbind(1)
        places[0, y, x] = torch.arange(len(grid))
    y, x = (grid + reach).unbind(1)
    return [_turned(places, turn)[0, y, x] for turn in range(8)]


def _turned(values: Tensor, turn: int) -> Tensor:
    """Rotate values [N, a, a] by `turn` quarter turns, and mirror them if `turn` is at least 4."""
    values = torch.rot90(values, turn % 4, (1, 2))
    return values.flip(2) if turn >= 4 else values


def _autocorrelation(filters: Tensor) -> Tensor:
    """Return the autocorrelations of filters: [N, t, t] -> [N, 2 t - 1, 2 t - 1]."""
    taps = filters.shape[-1]
    spectrum = torch.fft.rfft2(filters, s=(2 * taps, 2 * taps))
    whole = torch.fft.irfft2(spectrum.abs().square(), s=(2 * taps, 2 * taps))
    return torch.roll(whole, (taps - 1, taps - 1), (-2, -1))[..., :-1, :-1]


def _lags(spectrum: Tensor, size: tuple[int, ...], reach: int) -> Tensor:
    """Return the correlations at distances of up to `reach` px, [2 reach + 1, 2 reach + 1], a mean over pixels."""
    whole = torch.fft.irfft2(spectrum, s=size) / (size[0] * size[1])
    return torch.roll(whole, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1].clone()
