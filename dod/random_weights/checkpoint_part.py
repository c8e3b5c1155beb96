"""DOD checkpoint with random adaptation, modulation and detail modules whose effect has a realistic size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checkpoint import save_checkpoint
from ..config import Preset
from ..model import clora
from ..model.detail import DetailEnhancement
from ..model.dod import DOD
from ..training.calibrate import calibrate
from .tables import say

__all__ = ["write_checkpoint"]

WEIGHT_CHANGE = 0.02
"""Initial |s B A| / |W| of each layer with LoRA."""
LATENT_CHANGE = 0.3
"""Standard deviation of the change of the restored latent by the UNet's LoRA."""
MODULATION = 0.3
"""Approximate standard deviation of gamma and of beta over layers and ranks."""
DETAIL = 0.3
"""Weight w of each detail module."""

SamplesOf = Callable[[Sequence[str]], Dataset]


@torch.no_grad()
def write_checkpoint(
    preset: Preset, folder: Path, samples_of: SamplesOf, count: int, image: Tensor, seed: int
) -> dict[str, float]:
    """Write a checkpoint for the base and the DDPM of a preset.

    Args:
        preset: preset whose base and DDPM exist.
        folder: folder of the checkpoint.
        samples_of: function that returns the calibration samples of conditions, see `calibrate`.
        count: number of samples of each condition.
        image: image to set the size of the changes with, [1, 3, H, W] in [-1, 1].
        seed: seed of the random generator.

    Returns:
        Measurements by name.
    """
    generator = torch.Generator().manual_seed(seed)
    model = DOD.from_preset(preset)
    say(f"dod: calibrating on {count} samples of each condition")
    calibrate(model, samples_of, count)
    _spread_modulation(model, generator)
    for part in (model.unet.unet, model.encoder.encoder):
        for _, layer in clora.adapted_layers(part):
            _change(layer, generator)
    for module in cast(list[DetailEnhancement], model.decoder.detail):
        nn.init.normal_(module.align.weight, std=module.align.in_channels**-0.5, generator=generator)
        module.weight.fill_(DETAIL)
    say("dod: setting the size of the change by LoRA")
    _, modulation = model.modulation(image)
    latent, _ = model.encode(image, modulation)
    measured = _set_latent_change(model, latent, modulation)
    save_checkpoint(model, folder)
    return measured | _measure(model, image, modulation)


def _spread_modulation(model: DOD, generator: torch.Generator) -> None:
    """Make M standardize c with the calibration's statistics, as training would, and give its last layer values."""
    assert model.statistics is not None  # calibrate has just set it
    network = model.mfm.network
    between = torch.stack(list(model.prototypes.values())).var(dim=0, correction=0)
    mean, deviation = model.statistics[0], (model.statistics[1:].diagonal() + between).sqrt()
    first = network.condition_in[0]
    assert isinstance(first, nn.Linear)
    scale = deviation.clamp_min(1e-6 * float(deviation.max()))
    first.weight.copy_(torch.randn(first.weight.shape, generator=generator) / first.in_features**0.5 / scale)
    first.bias.copy_(-first.weight @ mean)
    # LayerNorm and ReLU leave half of a unit variance.
    nn.init.normal_(network.out.weight, std=MODULATION / (network.out.in_features / 2) ** 0.5, generator=generator)


def _change(layer: clora.LoraLayer, generator: torch.Generator) -> None:
    """Set A and B so that the norm of s B A is `WEIGHT_CHANGE` times that of the layer's weight."""
    a, b = clora.factors(layer)
    nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
    b.copy_(torch.randn(b.shape, generator=generator))
    norm = (b.flatten(1) @ a.flatten(1)).norm() * layer.scaling[clora.ADAPTER]
    b.mul_(WEIGHT_CHANGE * cast(nn.Linear, layer.get_base_layer()).weight.norm() / norm)


def _set_latent_change(model: DOD, latent: Tensor, modulation: Tensor) -> dict[str, float]:
    """Scale the UNet's B so that LoRA changes the restored latent by `LATENT_CHANGE`. Return measurements."""
    factors = [clora.factors(layer)[1] for _, layer in clora.adapted_layers(model.unet.unet)]
    values = [b.clone() for b in factors]
    for b in factors:
        b.zero_()
    plain = model.unet(latent, modulation)
    share = 1.0
    for _ in range(2):
        for b, value in zip(factors, values, strict=True):
            b.copy_(share * value)
        share *= LATENT_CHANGE / float((model.unet(latent, modulation) - plain).std())
    for b, value in zip(factors, values, strict=True):
        b.copy_(share * value)
    restored = model.unet(latent, modulation)
    return {
        "latent": float(latent.std()),
        "restored latent, without LoRA": float(plain.std()),
        "restored latent": float(restored.std()),
        "change by LoRA": float((restored - plain).std()),
        "change of weights in the UNet": WEIGHT_CHANGE * share,
    }


def _measure(model: DOD, image: Tensor, own: Tensor) -> dict[str, float]:
    """Return standard deviations of the modulation, over layers and between conditions, and of the restored image."""
    modulation = model.mfm.network(torch.stack(list(model.prototypes.values())))
    restored = model(image, own)
    return {
        "gamma over layers": float(modulation[:, :, 0].std()),
        "gamma between the conditions": float(modulation[:, :, 0].std(0).mean()),
        "beta between the conditions": float(modulation[:, :, 1].std(0).mean()),
        "image": float(image.std()),
        "restored image": float(restored.std()),
        "change of the image": float((restored - image).std()),
    }
