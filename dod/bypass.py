"""A blurred or clean picture goes past the model, to the sharpening filter alone. An option, not in the paper."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .config import BypassConfig

SHADES = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
"""Brightnesses in 0 to 1: for each, how many pixels are darker, and how many are brighter."""
RAMP = 1 / 64
"""Over so much brightness a pixel passes from the one to the other."""
HOP = 4
"""Of so many pixels one is counted, in either direction."""
FLOOR = 1e-3
"""What every share gets added before its logarithm."""
NOTHING = -16.0
"""What a sigmoid makes nothing of."""


class Bypass(nn.Module):
    """image [B, 3, H, W] float32, features [B, C, H, W], levels [B, F] -> image.

    image: what the decoder gives, in about [-1, 1]. features: the input of the encoder's first down block; its own
    colours, those of the degraded picture, are seen in it. levels: of the luma's periodogram (`dod.sharpening`).

    What lies over a picture, haze, rain, noise or darkness, has to be taken off. Over one that is clean, or but
    blurred, nothing lies, and the decoder can only lose some of it: mist that belongs to it, which the model takes for
    haze, and fine detail. A small network says of the levels and the histogram (of each pixel's darkest channel, and of
    its brightest) how much of such a picture there is in this one: so much is taken of its own colours, the rest of the
    decoder's. It starts as nothing.
    """

    shades: Tensor

    def __init__(self, channels: int, levels: int, config: BypassConfig) -> None:
        super().__init__()
        self.colours = nn.Conv2d(channels, 3, 1)
        self.register_buffer("shades", torch.tensor(SHADES, device="cpu"), persistent=False)
        self.mean = nn.Parameter(torch.zeros(levels + 2 * len(SHADES)))
        self.choice = nn.Sequential(
            nn.Linear(len(self.mean), config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width // 2),
            nn.ReLU(),
            nn.Linear(config.width // 2, 1),
        )
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, NOTHING)

    @property
    def last(self) -> nn.Linear:
        """What gives the logit of the share that goes past."""
        return cast(nn.Linear, self.choice[-1])

    def forward(self, image: Tensor, features: Tensor, levels: Tensor) -> Tensor:
        own = self.colours(features).float()
        seen = torch.cat([levels, self.histogram(own)], dim=1) - self.mean.float()
        share = self.choice(seen.to(features.dtype)).float().sigmoid()[:, :, None, None]
        return image + share * (own - image)

    def histogram(self, colours: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 2 S] float32: the logarithms of the shares of pixels whose darkest channel is
        below each shade, then of those whose brightest is above."""
        some = (colours[:, :, ::HOP, ::HOP] + 1) / 2
        darkest, brightest = some.amin(dim=1).flatten(1)[:, None], some.amax(dim=1).flatten(1)[:, None]
        shades = self.shades.float()[:, None]
        below = ((shades - darkest) / RAMP + 0.5).clamp(0, 1).mean(dim=2)
        above = ((brightest - shades) / RAMP + 0.5).clamp(0, 1).mean(dim=2)
        return (torch.cat([below, above], dim=1) + FLOOR).log()
