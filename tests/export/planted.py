"""A model with the same results and an intermediate value that float16 cannot hold."""

from __future__ import annotations

import copy
from typing import Any

import torch

from dod.model.dod import DOD

BLOCK = "decoder.detail.0.body.0.blocks.0"
LOUD = f"{BLOCK}.convs.0"
SCALE = 2.0**18


@torch.no_grad()
def plant_overflow(model: DOD, scale: float = SCALE) -> DOD:
    """Copy the model with one convolution of a detail module scaled up, and the weights that read its result down.

    Leaky ReLU commutes with a positive factor, and a power of two does not round in float32, so results stay the same.
    """
    planted = copy.deepcopy(model)
    block: Any = planted.get_submodule(BLOCK)
    first = block.convs[0]
    channels, growth = first.in_channels, first.out_channels
    first.weight *= scale
    first.bias *= scale
    for conv in block.convs[1:]:
        conv.weight[:, channels : channels + growth] /= scale
    return planted
