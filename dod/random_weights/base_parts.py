"""Stable Diffusion 2.1-base and the pixel DDPMs at full size, with random weights that are scaled on photographs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from dod_runtime.console import progress

from ..config import Preset
from ..model.adm import ADMEncoder
from ..model.base import PROMPT_FILE
from ..model.closed_form import alpha_bar
from ..model.modulation import DiffusersHSpace
from ..model.networks import new_ddpm, new_unet, new_vae, random_prompt
from ..tensors import write_safetensors
from .layouts import ADM_FILE, PUBLISHED, WEIGHTS, adm_decoder, configuration, old_names
from .scaling import carry, deviations, fit, inputs_of, rescale, standardise
from .tables import LayerStatistics, say

__all__ = ["write_adm", "write_ddpm", "write_stable_diffusion"]

LOG_VARIANCE = -17.0
"""Logarithm of the posterior's variance, about that of a trained VAE: almost no variance."""


def write_stable_diffusion(
    preset: Preset, folder: Path, images: Tensor, dtype: torch.dtype, seed: int
) -> LayerStatistics:
    """Write `vae`, `unet`, `scheduler` and a random prompt embedding.

    Args:
        preset: preset whose structure is written.
        folder: existing folder to write to.
        images: images to scale the layers on, [B, 3, H, W] in [-1, 1].
        dtype: data type of the written weights.
        seed: seed of the random generator.

    Returns:
        Statistics of the layers.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: LayerStatistics = {}
    vae = new_vae(preset.base.vae).eval()
    latents, layers["vae"] = _calibrate_vae(vae, images, generator)
    _save(vae, "vae", folder, dtype, old_names)
    del vae
    prompt = random_prompt(preset.base)
    write_safetensors({"prompt": prompt}, folder / PROMPT_FILE)
    unet = new_unet(preset.base.unet, preset.base.vae.latent_channels).eval()
    layers["unet"] = _calibrate_unet(unet, latents, prompt, preset, generator)
    _save(unet, "unet", folder, dtype, dict)
    (folder / "scheduler").mkdir()
    shutil.copyfile(PUBLISHED / "scheduler.json", folder / "scheduler" / "scheduler_config.json")
    return layers


@torch.no_grad()
def write_ddpm(preset: Preset, folder: Path, images: Tensor, dtype: torch.dtype, seed: int) -> LayerStatistics:
    """Write a pixel DDPM in diffusers' layout, with its unused decoder.

    Args:
        preset: preset whose structure is written.
        folder: existing folder to write to.
        images: images to scale the layers on, [B, 3, H, W] in [-1, 1].
        dtype: data type of the written weights.
        seed: seed of the random generator.

    Returns:
        Statistics of the layers.
    """
    ddpm = new_ddpm(preset.ddpm).eval()

    def run() -> object:
        return ddpm(images[:1], 0)

    say("ddpm: scaling")
    rescale(ddpm, run, torch.Generator().manual_seed(seed))
    layers = deviations(DiffusersHSpace(ddpm), run)
    _save(ddpm, "ddpm", folder, dtype, old_names)
    return {"ddpm": layers}


@torch.no_grad()
def write_adm(
    _: Preset, folder: Path, images: Tensor, dtype: torch.dtype, seed: int, **structure: Any
) -> LayerStatistics:
    """Write the state dict of an ADM with `torch.save`. The decoder is random and not scaled, because nothing runs it.

    Args:
        folder: existing folder to write to.
        images: images to scale the layers on, [B, 3, H, W] in [-1, 1].
        dtype: data type of the written weights.
        seed: seed of the random generator.
        **structure: arguments of `ADMEncoder`, by default those of the published model.

    Returns:
        Statistics of the layers.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder = ADMEncoder(**structure).eval()

    def run() -> object:
        return encoder(images[:1])

    say("adm: scaling")
    rescale(encoder, run, generator)
    layers = deviations(encoder, run)
    state = {name: tensor.to(dtype) for name, tensor in encoder.state_dict().items()}
    for name, shape in adm_decoder(**structure).items():
        if len(shape) == 1:
            value = torch.full(shape, float(name.endswith((".0.weight", "norm.weight"))))
        else:
            value = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        state[name] = value.to(dtype)
    torch.save(state, folder / ADM_FILE)
    return {"adm": layers}


@torch.no_grad()
def _calibrate_vae(
    vae: AutoencoderKL, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Scale a VAE and fit the last layer of its decoder to the images.

    Returns the scaled latents of the images, [B, 4, h, w], whose channels have the standard deviation of SD's, and the
    statistics of the layers.
    """
    factor, quant = vae.config["scaling_factor"], cast(nn.Conv2d, vae.quant_conv)
    channels = vae.config["latent_channels"]
    say(f"vae: scaling, {len(images)} images")
    rescale(vae.encoder, lambda: vae.encoder(images[:2]), generator)
    moments = torch.cat([vae.encoder(x) for x in progress(images.split(1), label="vae: encode")])
    standardise(
        quant, moments, [0.0] * channels + [LOG_VARIANCE] * channels, [1 / factor] * channels + [1.0] * channels
    )
    latents = quant(moments)[:, :channels]
    post = cast(nn.Conv2d, vae.post_quant_conv)
    standardise(post, latents, [0.0] * channels, [1.0] * channels)
    rescale(vae.decoder, lambda: vae.decoder(post(latents[:1])), generator)
    say("vae: fitting the decoder's last layer")
    with inputs_of(vae.decoder.conv_out) as features:
        for latent in progress(latents.split(1), label="vae: decode"):
            vae.decoder(post(latent))
    fit(vae.decoder.conv_out, features, images.split(1))
    features.clear()
    layers = deviations(vae, lambda: vae(images[:1]))
    return latents * factor, layers


@torch.no_grad()
def _calibrate_unet(
    unet: UNet2DConditionModel, latents: Tensor, prompt: Tensor, preset: Preset, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Scale a UNet and fit its last layer to eps = z (1 - sqrt(abar)) / sqrt(1 - abar), so that it restores z to z."""

    def run(z: Tensor) -> Tensor:
        return unet(z, preset.step.timestep, prompt.expand(len(z), -1, -1)).sample

    say("unet: scaling")
    rescale(unet, lambda: run(latents[:2]), generator)
    carry(unet)
    # Weaker and stronger latents too, or the fit would take the gain of the last normalization for a constant.
    seen = torch.cat([latents, 0.8 * latents.flip(3), 1.2 * latents.flip(2)])
    say(f"unet: fitting the last layer on {len(seen)} latents")
    with inputs_of(unet.conv_out) as features:
        for z in progress(seen.split(1), label="unet: eps"):
            run(z)
    abar = alpha_bar(preset.step)
    fit(unet.conv_out, features, (seen * (1 - abar**0.5) / (1 - abar) ** 0.5).split(1))
    return deviations(unet, lambda: run(latents[:1]))


def _save(
    model: nn.Module,
    part: str,
    folder: Path,
    dtype: torch.dtype,
    named: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> None:
    """Write config.json and weights of a part: in its subfolder, or for the pixel DDPM in the folder itself."""
    place = folder if part == "ddpm" else folder / part
    place.mkdir(exist_ok=True)
    config = configuration(part, model.config)  # type: ignore[arg-type]
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.to(dtype) for name, tensor in named(model.state_dict()).items()}
    write_safetensors(state, place / WEIGHTS, {"format": "pt"})
