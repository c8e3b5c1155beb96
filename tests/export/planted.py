"""A model that computes what it did before, but by way of numbers that float16 cannot hold."""

from __future__ import annotations

import copy

import torch

from dod.model import DOD

BLOCK = "unet.unet.mid_block.attentions.0.transformer_blocks.0.ff"
LOUD = f"{BLOCK}.net.0.proj"
SCALE = 2.0**17


@torch.no_grad()
def plant_overflow(model: DOD, scale: float = SCALE) -> DOD:
    """A copy whose feed-forward of the middle block is `scale` times as large inside: the first layer's values (not its
    gates) are multiplied, the second layer's weights divided. A power of two changes nothing in float32."""
    planted = copy.deepcopy(model)
    first, second = planted.get_submodule(LOUD), planted.get_submodule(f"{BLOCK}.net.2")
    values = first.base_layer.weight.shape[0] // 2
    for part in (first.base_layer.weight, first.base_layer.bias, first.lora_B["default"].weight):
        part[:values] *= scale
    for part in (second.base_layer.weight, second.lora_A["default"].weight):
        part /= scale
    return planted
