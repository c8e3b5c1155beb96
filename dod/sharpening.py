"""A filter that the picture's own spectrum chooses, added to what the decoder gives. An option, not in the paper."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SharpeningConfig

HOP = 16
"""Pixels between two windows of the periodogram."""
FLOOR = 1e-6
"""What every power gets added before its logarithm: about that of eight bits' rounding."""


def frequencies(window: int) -> Tensor:
    """[F, 2]: the periodogram's (vertical, horizontal), in cycles a window: one of two opposite ones, and none that a
    window's mean reaches."""
    half = window // 2
    grid = [(y, x) for y in range(-half, half + 1) for x in range(half + 1) if x > 0 or y > 0]
    return torch.tensor([(y, x) for y, x in grid if x > 1 or abs(y) > 1], device="cpu")


def windowed_waves(window: int) -> Tensor:
    """[2 F, 1, window, window]: the cosine of every frequency, then its sine, under Hann's window of norm 1.

    The window is taken between its points: so it is symmetric, and a constant reaches no frequency but those left out.
    """
    place = torch.arange(window, dtype=torch.float64, device="cpu") - window // 2
    hann = (place * math.pi / window).cos().square()
    hann = torch.outer(hann, hann)
    turns = frequencies(window).double() * 2 * math.pi / window
    phase = turns[:, :1, None] * place[:, None] + turns[:, 1:, None] * place
    return (torch.cat([phase.cos(), phase.sin()]) * hann / hann.norm()).float()[:, None]


class Sharpening(nn.Module):
    """features [B, C, H, W] -> [B, 1, H, W] float32, to be added to each colour, and the periodogram's logarithm
    [B, F] float32. H, W at least `window` and `taps`.

    features: the input of the encoder's first down block. One picture in them, the luma, is seen twice. Welch's
    periodogram (1967), the mean power of each frequency in windows all over it, tells how it is blurred: where a kernel
    has no power the picture has none. A small network makes of its logarithm how much is taken of each of `filters`
    filters, and their sum over the luma is what is added. It starts as nothing.
    """

    waves: Tensor

    def __init__(self, channels: int, config: SharpeningConfig) -> None:
        super().__init__()
        self.luma = nn.Conv2d(channels, 1, 1)
        self.register_buffer("waves", windowed_waves(config.window), persistent=False)
        self.mean = nn.Parameter(torch.zeros(len(self.waves) // 2))
        self.choice = nn.Sequential(
            nn.Linear(len(self.mean), config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.filters),
        )
        self.filters = nn.Conv2d(1, config.filters, config.taps, bias=False)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @property
    def last(self) -> nn.Linear:
        """What gives the gains."""
        return cast(nn.Linear, self.choice[-1])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        luma = self.luma(features)
        levels = self.levels(luma)
        gains = self.choice((levels - self.mean.float()).to(luma.dtype))
        reach = self.filters.kernel_size[0] // 2
        responses = self.filters(F.pad(luma, (reach,) * 4, mode="reflect"))
        return torch.matmul(gains[:, None], responses.flatten(2)).unflatten(2, luma.shape[2:]).float(), levels

    def levels(self, luma: Tensor) -> Tensor:
        """The periodogram's logarithm [B, F] float32 of a luma [B, 1, H, W]."""
        power = F.conv2d(luma, self.waves, stride=HOP).float().square().mean((2, 3))
        return (power.unflatten(1, (2, -1)).sum(1) + FLOOR).log()
