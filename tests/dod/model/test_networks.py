"""Randomly initialised networks; `random_weights.test_layouts` compares their shapes with the published ones."""

from __future__ import annotations

import torch
from torch import nn

from dod.config import load_preset
from dod.model.networks import new_ddpm, new_unet, new_vae, random_prompt
from tests.dod.small_model import tiny


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_defaults_have_the_published_numbers_of_parameters() -> None:
    preset = load_preset("sd21")
    with torch.device("meta"):
        assert count(new_vae(preset.base.vae)) == 83_653_863
        assert count(new_unet(preset.base.unet)) == 865_910_724
        assert count(new_ddpm(preset.ddpm)) == 113_673_219


def test_a_seed_determines_the_prompt() -> None:
    base, other = tiny().base, tiny(base__seed=1).base
    torch.manual_seed(0)
    first = random_prompt(base)
    torch.manual_seed(1)
    assert first.shape == (1, base.prompt_tokens, base.unet.cross_attention_dim)
    assert torch.equal(random_prompt(base), first) and not torch.equal(random_prompt(other), first)
