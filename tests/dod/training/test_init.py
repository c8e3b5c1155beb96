"""New networks start as the linear map nearest to their task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dod.config import VAEConfig, load_preset
from dod.model.base import new_vae
from dod.model.dod import alpha_bar
from dod.training import init
from tests.dod.small_model import image


@pytest.mark.parametrize(("groups", "kept"), [(1, True), (8, False)])
def test_the_last_normalisation_preserves_tone(groups: int, kept: bool) -> None:
    """A difference in brightness survives the last normalisation, except with two channels per group."""
    torch.manual_seed(0)
    vae: Any = new_vae(VAEConfig((16, 16, 16, 16), 1, groups))
    norm, block = vae.decoder.conv_norm_out, vae.decoder.up_blocks[-1]
    before = block.resnets[-1].conv2.bias.detach().clone()
    init.let_tone_through(norm, block)
    constants = block.resnets[-1].conv2.bias.detach() - before
    dark = torch.randn(1, 16, 32, 32) / 2
    bright = dark + torch.randn(1, 16, 1, 1)
    with torch.no_grad():
        dark, bright = (norm(x + constants[:, None, None]) - x for x in (dark, bright))
    error = (bright - dark).mean(dim=(2, 3)).std()
    assert (error < 0.3) == kept, error


def test_a_new_autoencoder_averages() -> None:
    """Its latents are mean colours, and its images have the tone of the input."""
    torch.manual_seed(0)
    vae: Any = init.new_autoencoder(VAEConfig((16, 32, 64, 64), 2, 1)).eval()
    shade = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    pixels = (shade + 0.2 * image(4, 64, 96)).clamp(-1, 1)
    means = torch.nn.functional.avg_pool2d(pixels, 8)
    with torch.no_grad():
        latent = vae.encode(pixels).latent_dist
        restored = vae.decode(latent.mode()).sample
    assert (latent.mode()[:, :3] - means).abs().max() < 0.03 and latent.std.max() < 0.02
    assert (torch.nn.functional.avg_pool2d(restored, 8) - means).abs().mean() < 0.02
    plain: Any = new_vae(VAEConfig((16, 32, 64, 64), 2, 1)).eval()
    with torch.no_grad():
        assert (plain(pixels).sample.mean((2, 3)) - pixels.mean((2, 3))).abs().mean() > 0.1, (
            "an ordinary new autoencoder averages too"
        )


@pytest.mark.parametrize("timestep", [249, 999])
def test_a_new_unet_is_the_linear_prediction(timestep: int) -> None:
    preset = load_preset(
        "mini",
        {"step.timestep": timestep, "base.unet.block_out_channels": [32, 32], "base.unet.attention_heads": [1, 1]},
    )
    unet = init.new_latent_unet(preset).eval()
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 16, 24, generator=generator) / 2 + torch.tensor([0.5, -0.5, 1, 0])[:, None, None]
    with torch.no_grad():
        eps = unet(latent, timestep, torch.randn(2, 8, 64, generator=generator)).sample
    target = (1 - alpha_bar(preset.step)) ** 0.5 * latent
    assert (eps - target).abs().mean() < 0.1 * target.abs().mean()
