"""A DOD model small enough for tests, random weights that change its output, and the SNR that tests compare with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dod.config import Preset, load_preset
from dod.model.dod import DOD

SMALLER = {
    "base.vae.block_out_channels": [8, 8],
    "base.unet.block_out_channels": [8, 8],
    "base.unet.attention_heads": [1, 1],
}
"""Two levels instead of four, for tests that compile or train."""


def tiny(**changes: Any) -> Preset:
    """Return the preset `tiny` with changes, such as `lora__rank=8` for lora.rank."""
    return load_preset("tiny", {key.replace("__", "."): value for key, value in changes.items()})


def smaller(**changes: Any) -> Preset:
    """Return the preset `tiny` with two levels and changes."""
    return load_preset("tiny", {**SMALLER, **{key.replace("__", "."): value for key, value in changes.items()}})


@torch.no_grad()
def randomise(model: DOD, seed: int = 0, strength: float = 0.1) -> DOD:
    """Set B, the last layer of M and the detail modules to random values that change the output, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in {**model.adaptation_parameters(), **model.detail_parameters()}.items():
        if name.endswith(("lora_B.weight", "out.weight", "out.bias")):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * strength)
        elif "align." in name or (name.endswith(".weight") and parameter.ndim == 0):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def image(batch: int = 1, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Return random images, [B, 3, H, W] in [-1, 1]."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard-normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snr_db(reference: Any, value: Any) -> float:
    """Return the signal-to-noise ratio 10 log10(|reference|^2 / |reference - value|^2) in dB, computed in float64."""
    reference, value = (torch.as_tensor(x, dtype=torch.float64) for x in (reference, value))
    error = (reference - value).square().sum().item()
    return math.inf if error == 0 else 10 * math.log10(reference.square().sum().item() / error)
