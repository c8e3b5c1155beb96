"""Writes Stable Diffusion 2.1-base and the pixel DDPMs at full size, random but calibrated on real images."""

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
from tqdm import tqdm

from ..config import Preset
from ..model.adm import ADMEncoder
from ..model.base import PROMPT_FILE, new_ddpm, new_unet, new_vae, random_prompt
from ..model.dod import alpha_bar
from ..model.modulation import DiffusersHSpace
from ..tensors import write_safetensors
from .layouts import ADM_FILE, PUBLISHED, WEIGHTS, adm_decoder, configuration, old_names
from .report import say
from .scaling import carry, deviations, fit, inputs_of, rescale, standardise

Figures = dict[str, dict[str, tuple[float, float]]]
"""Part -> layer -> (deviation, largest magnitude) of what the layer gives."""

LOG_VARIANCE = -17.0
"""About what a trained VAE's encoder gives for the logarithm of its posterior's variance: almost none."""


def write_stable_diffusion(preset: Preset, folder: Path, images: Tensor, dtype: torch.dtype, seed: int) -> Figures:
    """`vae`, `unet`, `scheduler` and the random prompt embedding. images: [B, 3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    figures: Figures = {}
    vae = new_vae(preset.base.vae).eval()
    latents, figures["vae"] = _calibrate_vae(vae, images, generator)
    _save(vae, "vae", folder, dtype, old_names)
    del vae
    prompt = random_prompt(preset.base)
    write_safetensors({"prompt": prompt}, folder / PROMPT_FILE)
    unet = new_unet(preset.base.unet, preset.base.vae.latent_channels).eval()
    figures["unet"] = _calibrate_unet(unet, latents, prompt, preset, generator)
    _save(unet, "unet", folder, dtype, dict)
    (folder / "scheduler").mkdir()
    shutil.copyfile(PUBLISHED / "scheduler.json", folder / "scheduler" / "scheduler_config.json")
    return figures


@torch.no_grad()
def write_ddpm(preset: Preset, folder: Path, images: Tensor, dtype: torch.dtype, seed: int) -> Figures:
    """A whole pixel DDPM in diffusers' layout; its unused decoder is calibrated as well."""
    ddpm = new_ddpm(preset.ddpm).eval()

    def run() -> object:
        return ddpm(images[:1], 0)

    say("ddpm: scaling")
    rescale(ddpm, run, torch.Generator().manual_seed(seed))
    figures = deviations(DiffusersHSpace(ddpm), run)
    _save(ddpm, "ddpm", folder, dtype, old_names)
    return {"ddpm": figures}


@torch.no_grad()
def write_adm(_: Preset, folder: Path, images: Tensor, dtype: torch.dtype, seed: int, **structure: Any) -> Figures:
    """An ADM's whole state dict as `torch.save` writes it. The decoder's half is random alone: nothing here runs it.

    structure: `ADMEncoder`'s arguments, where they are not those of the published model.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder = ADMEncoder(**structure).eval()

    def run() -> object:
        return encoder(images[:1])

    say("adm: scaling")
    rescale(encoder, run, generator)
    figures = deviations(encoder, run)
    state = {name: tensor.to(dtype) for name, tensor in encoder.state_dict().items()}
    for name, shape in adm_decoder(**structure).items():
        if len(shape) == 1:
            value = torch.full(shape, float(name.endswith((".0.weight", "norm.weight"))))
        else:
            value = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        state[name] = value.to(dtype)
    torch.save(state, folder / ADM_FILE)
    return {"adm": figures}


@torch.no_grad()
def _calibrate_vae(
    vae: AutoencoderKL, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """(scaled latents [B, 4, h, w] of the images, figures). The latents' channels get SD's deviation, the last layer
    of the decoder the least-squares fit to the images."""
    factor, quant = vae.config["scaling_factor"], cast(nn.Conv2d, vae.quant_conv)
    channels = vae.config["latent_channels"]
    say(f"vae: scaling, {len(images)} images")
    rescale(vae.encoder, lambda: vae.encoder(images[:2]), generator)
    moments = torch.cat([vae.encoder(x) for x in tqdm(images.split(1), "vae: encode", disable=None)])
    standardise(
        quant, moments, [0.0] * channels + [LOG_VARIANCE] * channels, [1 / factor] * channels + [1.0] * channels
    )
    latents = quant(moments)[:, :channels]
    post = cast(nn.Conv2d, vae.post_quant_conv)
    standardise(post, latents, [0.0] * channels, [1.0] * channels)
    rescale(vae.decoder, lambda: vae.decoder(post(latents[:1])), generator)
    say("vae: fitting the decoder's last layer")
    with inputs_of(vae.decoder.conv_out) as features:
        for latent in tqdm(latents.split(1), "vae: decode", disable=None):
            vae.decoder(post(latent))
    fit(vae.decoder.conv_out, features, images.split(1))
    features.clear()
    figures = deviations(vae, lambda: vae(images[:1]))
    return latents * factor, figures


@torch.no_grad()
def _calibrate_unet(
    unet: UNet2DConditionModel, latents: Tensor, prompt: Tensor, preset: Preset, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Fits the last layer so that the restored latent is the latent: eps = z (1 - sqrt(abar)) / sqrt(1 - abar)."""

    def run(z: Tensor) -> Tensor:
        return unet(z, preset.step.timestep, prompt.expand(len(z), -1, -1)).sample

    say("unet: scaling")
    rescale(unet, lambda: run(latents[:2]), generator)
    carry(unet)
    # Fainter and stronger images too: the last normalisation must not be taken for a fixed gain.
    seen = torch.cat([latents, 0.8 * latents.flip(3), 1.2 * latents.flip(2)])
    say(f"unet: fitting the last layer on {len(seen)} latents")
    with inputs_of(unet.conv_out) as features:
        for z in tqdm(seen.split(1), "unet: eps", disable=None):
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
    """config.json and the weights of one part; the pixel DDPM's lie directly in its folder, as published."""
    place = folder if part == "ddpm" else folder / part
    place.mkdir(exist_ok=True)
    config = configuration(part, model.config)  # type: ignore[arg-type]
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.to(dtype) for name, tensor in named(model.state_dict()).items()}
    write_safetensors(state, place / WEIGHTS, {"format": "pt"})
