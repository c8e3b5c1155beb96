"""Second moments of an image and its error, from which a sharpening kernel is fitted without running it.

What a kernel k leaves of an image's error e, |e - k * luma|^2, is a quadratic form in k: its coefficients are the
correlations of luma and error at each distance, a few hundred numbers for an image of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.kernels import random_kernel
from ..errors import ConfigError
from ..model.postprocess import frequencies

__all__ = ["Moments", "inverse_filters", "moments_of", "turned_orders", "without_mean"]

KERNELS = 3000
"""Number of random blur kernels whose inverses the filters start from."""
LEAST = 1e-6
"""The least squared error, so that a clean image has one to be compared with."""


@dataclass(frozen=True)
class Moments:
    """N images: spectrum [N, L] of the gate; luma [N, 2 t - 1, 2 t - 1], three times its autocorrelation; error
    [N, t, t], its correlation with the error summed over colors; squared [N], the mean squared error summed over
    colors; blurred [N], whether the image is to be sharpened (True) or left alone."""

    spectrum: Tensor
    luma: Tensor
    error: Tensor
    squared: Tensor
    blurred: Tensor

    def left(self, kernels: Tensor) -> Tensor:
        """The squared error [N] that remains when each luma, filtered with [N, t, t], is added to its image."""
        return (self.squared - 2 * (kernels * self.error).sum((1, 2)) + self.added(kernels)).clamp(min=1e-9)

    def added(self, kernels: Tensor) -> Tensor:
        """The square [N] of what is added."""
        return (_autocorrelation(kernels) * self.luma).sum((1, 2))

    def taken(self, which: Tensor, turn: int = 0, order: Tensor | None = None) -> Moments:
        """Some of them, as if the images were turned in one of eight ways, which permutes the spectrum by `order`."""
        spectrum = self.spectrum[which] if order is None else self.spectrum[which][:, order]
        luma, error = (_turned(each[which], turn) for each in (self.luma, self.error))
        return Moments(spectrum, luma, error, self.squared[which], self.blurred[which])


def moments_of(degraded: Tensor, clean: Tensor, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(luma, error, squared) of one pair [3, H, W], as in `Moments` without the first axis."""
    error, luma = clean - degraded, degraded.mean(0)
    squared = (error.square().mean() * len(error)).clamp(min=LEAST)
    spectrum = torch.fft.rfft2(luma - luma.mean())
    against = torch.fft.rfft2((error - error.mean((1, 2), keepdim=True)).sum(0))
    size = tuple(luma.shape)
    own = 3 * _lags(spectrum.abs().square(), size, taps - 1)
    return own, _lags(against.conj() * spectrum, size, taps // 2), squared


def inverse_filters(count: int, taps: int) -> tuple[Tensor, Tensor]:
    """What inverse filters of random blur kernels have in common: filters [count, 1, taps, taps], their mean and then
    principal components, and the deviation [count] of each. ConfigError where there are not so many."""
    rng, size, inverses = np.random.default_rng(1), 64, []
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    noise = 2e-3 * (radius / 0.1 + 0.05) ** 2  # relative to an image's power, which falls with the frequency's square
    for _ in range(KERNELS):
        drawn, kernel = random_kernel(rng), np.zeros((size, size))
        reach = drawn.shape[0] // 2
        kernel[: drawn.shape[0], : drawn.shape[0]] = drawn
        transfer = np.fft.fft2(np.roll(kernel, (-reach, -reach), (0, 1)))
        inverse = np.fft.ifft2(np.conj(transfer) / (np.abs(transfer) ** 2 + noise)).real
        inverse[0, 0] -= 1  # the image itself is there already
        inverses.append(np.roll(inverse, (taps // 2, taps // 2), (0, 1))[:taps, :taps].ravel())
    mean = np.mean(inverses, axis=0)
    _, values, vectors = np.linalg.svd(inverses - mean, full_matrices=False)
    if count - 1 > len(values):
        raise ConfigError(f"filters: {count} are more than {taps} x {taps} taps have room for")
    norm = np.linalg.norm(mean)
    filters = torch.from_numpy(np.concatenate([mean[None] / norm, vectors[: count - 1]])).float()
    deviations = torch.tensor([norm, *(values[: count - 1] / KERNELS**0.5)], dtype=torch.float32)
    return filters.reshape(count, 1, taps, taps), deviations


def without_mean(filters: Tensor) -> Tensor:
    """Filters [F, t, t] that leave brightness alone."""
    return filters - filters.mean((1, 2), keepdim=True)


def turned_orders(window: int) -> list[Tensor]:
    """For each of eight ways to turn an image, the places [L] of the turned image's spectrum in its own."""
    grid = frequencies(window)
    reach = int(grid.abs().max())
    places = torch.full((1, 2 * reach + 1, 2 * reach + 1), -1)
    for sign in (1, -1):
        y, x = (sign * grid + reach).unbind(1)
        places[0, y, x] = torch.arange(len(grid))
    y, x = (grid + reach).unbind(1)
    return [_turned(places, turn)[0, y, x] for turn in range(8)]


def _turned(values: Tensor, turn: int) -> Tensor:
    """[N, a, a], turned by quarters and mirrored: one of eight ways."""
    values = torch.rot90(values, turn % 4, (1, 2))
    return values.flip(2) if turn >= 4 else values


def _autocorrelation(filters: Tensor) -> Tensor:
    """[N, t, t] -> [N, 2 t - 1, 2 t - 1]."""
    taps = filters.shape[-1]
    spectrum = torch.fft.rfft2(filters, s=(2 * taps, 2 * taps))
    whole = torch.fft.irfft2(spectrum.abs().square(), s=(2 * taps, 2 * taps))
    return torch.roll(whole, (taps - 1, taps - 1), (-2, -1))[..., :-1, :-1]


def _lags(spectrum: Tensor, size: tuple[int, ...], reach: int) -> Tensor:
    """The correlation [2 reach + 1, 2 reach + 1] of a cross spectrum, a mean over the pixels, at up to `reach` px."""
    whole = torch.fft.irfft2(spectrum, s=size) / (size[0] * size[1])
    return torch.roll(whole, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1].clone()
