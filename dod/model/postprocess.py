"""Post-processing of the decoded image, an option that the paper does not have: a gate and a sharpening filter.

Haze, rain, noise and low light must be removed. A clean image needs nothing removed, and a blurred one only sharpening,
which one linear filter does better than a small decoder. So the result is a blend of two restorers,

    out = (1 - s) decoded + s (degraded + k * luma(degraded)),

where the share s and the kernel k belong to the image as a whole: `Gate` decides both once per image from the native
crops that the MFM sees, and tiles share them. A named condition fixes s: the gate never overrules the caller.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PostprocessConfig

__all__ = ["Gate", "Postprocess", "frequencies"]

HOP = 11
"""Pixels between two windows of the periodogram, in each crop."""
FLOOR = 1e-6
"""Added to every power before its logarithm: about the power of rounding to eight bits."""
LEVELS = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
"""Brightnesses in 0 to 1 at which the histogram is cumulated."""
RAMP = 1 / 64
"""Width in brightness of the step with which a pixel is counted as darker or brighter than a level."""
STRIDE = 2
"""Every so many pixels one is counted in the histogram, along both axes."""
SHARE_FLOOR = 1e-3
"""Added to every share of the histogram before its logarithm."""
CLOSED = -16.0
"""The logit of an untrained gate: a share of 1e-7."""


class Gate(nn.Module):
    """Decide once per image how much of it passes the model, and with which kernel it is sharpened.

    crops [B, K, 3, R, R] in [-1, 1] and the condition c [B, C] -> share [B, 1] in 0 to 1 and gains [B, F], all float32.
    R is at least `window`. The gains mix the kernel from the F filters of `Postprocess`.

    The gains depend on the luma's periodogram alone (Welch 1967): a kernel leaves no power where it has none itself.
    The share depends on the periodogram, a histogram of each pixel's darkest and brightest channel, and c. An untrained
    gate is closed and gives no gains.
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
        spectrum = self.spectrum(crops) - self.spectrum_mean
        other = torch.cat([self.histogram(crops), condition], dim=1) - self.other_mean
        share = self.passing(torch.cat([spectrum, other], dim=1)).sigmoid()
        return share, self.sharpness(spectrum)

    def spectrum(self, crops: Tensor) -> Tensor:
        """The logarithm [B, L] of the luma's mean periodogram over all windows of all crops [B, K, 3, R, R]."""
        batch, count = crops.shape[:2]
        luma = crops.mean(dim=2).flatten(0, 1)[:, None]
        power = F.conv2d(luma, self.waves, stride=HOP).square().mean((2, 3)).unflatten(0, (batch, count)).mean(1)
        return (power.unflatten(1, (2, -1)).sum(1) + FLOOR).log()

    def histogram(self, crops: Tensor) -> Tensor:
        """The logarithms [B, 2 S] of the shares of pixels whose darkest channel is below each of `LEVELS`, then of
        those whose brightest channel is above. crops: [B, K, 3, R, R] in [-1, 1]."""
        some = (crops[..., ::STRIDE, ::STRIDE] + 1) / 2
        darkest, brightest = (each.flatten(1)[:, None] for each in (some.amin(dim=2), some.amax(dim=2)))
        levels = self.levels[:, None]
        below = ((levels - darkest) / RAMP + 0.5).clamp(0, 1).mean(dim=2)
        above = ((brightest - levels) / RAMP + 0.5).clamp(0, 1).mean(dim=2)
        return (torch.cat([below, above], dim=1) + SHARE_FLOOR).log()


class Postprocess(nn.Module):
    """Blend the decoded image with the sharpened degraded one; see the module's formula. All tensors are float32.

    decoded, degraded: [B, 3, H, W] in about [-1, 1]; share: [B, 1] in 0 to 1; gains: [B, F]. Returns [B, 3, H, W]. The
    kernel, `taps` px wide, is the mean-free filters mixed by the gains; what it makes of the luma is added to all three
    colors. H and W are greater than half of `taps`.
    """

    def __init__(self, config: PostprocessConfig) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, config.filters, config.taps, bias=False)

    def forward(self, decoded: Tensor, degraded: Tensor, share: Tensor, gains: Tensor) -> Tensor:
        reach = self.filters.kernel_size[0] // 2
        luma = degraded.mean(dim=1, keepdim=True)
        responses = self.filters(F.pad(luma, (reach,) * 4, mode="reflect"))
        added = torch.matmul(gains[:, None], responses.flatten(2)).unflatten(2, luma.shape[2:])
        return decoded + share[:, :, None, None] * (degraded + added - decoded)


def frequencies(window: int) -> Tensor:
    """The periodogram's frequencies [L, 2], (vertical, horizontal) in cycles per window.

    One of two opposite frequencies is listed, and none that a window's mean reaches.
    """
    fp16 = window // 2
    grid = [(y, x) for y in range(-fp16, fp16 + 1) for x in range(fp16 + 1) if x > 0 or y > 0]
    return torch.tensor([(y, x) for y, x in grid if x > 1 or abs(y) > 1], device="cpu")


def windowed_waves(window: int) -> Tensor:
    """The cosine of every frequency, then its sine, under a Hann window of norm 1: [2 L, 1, window, window].

    The window is sampled between its points, so it is symmetric, and a constant reaches no listed frequency.
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
