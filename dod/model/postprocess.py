"""Optional post-processing of the decoded image, which the paper does not have: a gate and a sharpening filter.

Haze, rain, noise and low light must be removed. A clean image needs nothing removed, and a blurred one only sharpening,
which one linear filter does better than a small decoder. The output is a blend of both,

    out = (1 - s) decoded + s (degraded + k * luma(degraded)),

with a share s and a kernel k. `Gate` predicts them once per image, from the native crops of the MFM, and all tiles use
them. A named condition fixes s: the gate never overrules the caller.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PostprocessConfig

__all__ = ["Gate", "Postprocess", "frequencies", "windowed_waves"]

HOP = 11
"""Distance between windows of the periodogram in pixels."""
FLOOR = 1e-6
"""Power added before the logarithm: about that of rounding to 8 bits."""
LEVELS = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
"""Brightness levels of the cumulative histogram, in 0 to 1."""
RAMP = 1 / 64
"""Width of the linear transition between darker and brighter than a level, in brightness."""
STRIDE = 2
"""Distance between the pixels that the histogram counts, in pixels along both axes."""
SHARE_FLOOR = 1e-3
"""Share of pixels added before the logarithm."""
CLOSED = -16.0
"""Logit of the share of an untrained gate, which is then 1e-7."""


class Gate(nn.Module):
    """Predictor of the share and the kernel of an image's post-processing.

    The gains are the weights of the F filters of `Postprocess` in the kernel. They depend only on the periodogram of
    the luma (Welch 1967), because a blur kernel leaves no power at the frequencies that it suppresses. The share
    depends on the periodogram, on histograms of the darkest and the brightest channel of each pixel, and on c. An
    untrained gate predicts a share of about 0 and gains of 0.

    Args:
        channels: C.
        config: sizes of the window and the networks, and F.
    """

    waves: Tensor
    levels: Tensor

    def __init__(self, channels: int, config: PostprocessConfig) -> None:
        super().__init__()
        self.register_buffer("waves", windowed_waves(config.window), persistent=False)
        self.register_buffer("levels", torch.tensor(LEVELS, device="cpu"), persistent=False)
        count, width = len(self.waves) // 2, config.width
        self.spectrum_mean = nn.Parameter(torch.zeros(count))
        self.other_mean = nn.Parameter(torch.zeros(2 * len(LEVELS) + channels))
        self.sharpness = _network(count, width, width, config.filters)
        self.passing = _network(count + len(self.other_mean), width, width // 2, 1)
        for network, bias in ((self.sharpness, 0.0), (self.passing, CLOSED)):
            last = cast(nn.Linear, network[-1])
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, bias)

    def forward(self, crops: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Predict share and gains. All tensors are float32.

        Args:
            crops: crops of the native images, [B, K, 3, R, R] in [-1, 1], with R of at least `config.window`.
            condition: c, [B, C].

        Returns:
            The share, [B, 1] in 0 to 1, and the gains, [B, F].
        """
        spectrum = self.spectrum(crops) - self.spectrum_mean
        other = torch.cat([self.histogram(crops), condition], dim=1) - self.other_mean
        share = self.passing(torch.cat([spectrum, other], dim=1)).sigmoid()
        return share, self.sharpness(spectrum)

    def spectrum(self, crops: Tensor) -> Tensor:
        """Return the logarithm of the luma's periodogram, a mean over all windows of all crops, [B, L].

        Args:
            crops: [B, K, 3, R, R] in [-1, 1].
        """
        batch, count = crops.shape[:2]
        luma = crops.mean(dim=2).flatten(0, 1)[:, None]
        power = F.conv2d(luma, self.waves, stride=HOP).square().mean((2, 3)).unflatten(0, (batch, count)).mean(1)
        return (power.unflatten(1, (2, -1)).sum(1) + FLOOR).log()

    def histogram(self, crops: Tensor) -> Tensor:
        """Return the logarithms of two cumulative histograms, [B, 2 S] for the S brightness levels of `LEVELS`.

        The first S values are the shares of pixels whose darkest channel is below each level, the others the shares of
        pixels whose brightest channel is above it.

        Args:
            crops: [B, K, 3, R, R] in [-1, 1].
        """
        some = (crops[..., ::STRIDE, ::STRIDE] + 1) / 2
        darkest, brightest = (each.flatten(1)[:, None] for each in (some.amin(dim=2), some.amax(dim=2)))
        levels = self.levels[:, None]
        below = ((levels - darkest) / RAMP + 0.5).clamp(0, 1).mean(dim=2)
        above = ((brightest - levels) / RAMP + 0.5).clamp(0, 1).mean(dim=2)
        return (torch.cat([below, above], dim=1) + SHARE_FLOOR).log()


class Postprocess(nn.Module):
    """Blend of the decoded image and the sharpened degraded image, by the equation at the top of this module.

    The kernel k is the sum of F filters of zero mean, weighted by the gains. The filtered luma is added to each of the
    three color channels.

    Args:
        config: number F and side `taps` of the filters.
    """

    def __init__(self, config: PostprocessConfig) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, config.filters, config.taps, bias=False)

    def forward(self, decoded: Tensor, degraded: Tensor, share: Tensor, gains: Tensor) -> Tensor:
        """Blend two images. All tensors are float32.

        Args:
            decoded: output of the decoder, [B, 3, H, W] in about [-1, 1].
            degraded: input of the model, [B, 3, H, W] in [-1, 1]; H and W exceed half of `taps`.
            share: share s of the degraded image, [B, 1] in 0 to 1.
            gains: weights of the filters, [B, F].

        Returns:
            The blend, [B, 3, H, W].
        """
        reach = self.filters.kernel_size[0] // 2
        luma = degraded.mean(dim=1, keepdim=True)
        responses = self.filters(F.pad(luma, (reach,) * 4, mode="reflect"))
        added = torch.matmul(gains[:, None], responses.flatten(2)).unflatten(2, luma.shape[2:])
        return decoded + share[:, :, None, None] * (degraded + added - decoded)


def frequencies(window: int) -> Tensor:
    """Return the frequencies of the periodogram.

    Of two opposite frequencies it has one, and none that the mean of a Hann window leaks into.

    Args:
        window: side of a window in pixels, odd.

    Returns:
        Vertical and horizontal frequency in cycles per window, [L, 2].
    """
    half = window // 2
    grid = [(y, x) for y in range(-half, half + 1) for x in range(half + 1) if x > 0 or y > 0]
    return torch.tensor([(y, x) for y, x in grid if x > 1 or abs(y) > 1], device="cpu")


def windowed_waves(window: int) -> Tensor:
    """Return the cosines, then the sines, of all frequencies under a Hann window of norm 1.

    The Hann window is sampled so that it is symmetric and a constant image has no power at any of the frequencies.

    Args:
        window: side of a window in pixels, odd.

    Returns:
        Filters of a convolution, [2 L, 1, window, window] float32.
    """
    place = torch.arange(window, dtype=torch.float64, device="cpu") - window // 2
    hann = (place * math.pi / window).cos().square()
    hann = torch.outer(hann, hann)
    turns = frequencies(window).double() * 2 * math.pi / window
    phase = turns[:, :1, None] * place[:, None] + turns[:, 1:, None] * place
    return (torch.cat([phase.cos(), phase.sin()]) * hann / hann.norm()).float()[:, None]


def _network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
