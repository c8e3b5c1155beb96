"""The model as a whole, compared with diffusers."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import FloatTensor, Tensor, nn

from dod.model import clora
from dod.model.base import load_base
from dod.model.dod import DOD
from tests.dod.model.test_closed_form import predicted_x0
from tests.dod.small_model import image, normal, randomise, snr_db, tiny


def test_untrained_model_is_stable_diffusion_in_one_step(untrained: DOD) -> None:
    """Compare with diffusers: VAE mode, noise prediction at t = 999, predicted x0 of a scheduler, VAE decoder."""
    parts, pixels = load_base(untrained.preset), image(2, 64, 128)
    with torch.no_grad():
        latent = cast(Any, parts.vae.encode(cast(FloatTensor, pixels))).latent_dist.mode() * 0.18215
        eps = parts.unet(latent, 999, parts.prompt.expand(2, -1, -1), return_dict=False)[0]
        restored = predicted_x0("DDIM", latent, eps)
        expected = parts.vae.decode(cast(FloatTensor, restored / 0.18215), return_dict=False)[0]
        found_latent, skips = untrained.encoder(pixels)
        _, modulation = untrained.modulation(pixels)
        assert snr_db(latent, found_latent) >= 90
        assert snr_db(restored, untrained.unet(found_latent, modulation)) >= 80
        found = untrained(pixels)
    assert found.shape == pixels.shape and found.dtype == torch.float32
    assert snr_db(expected, found) >= 60
    assert [tuple(skip.shape) for skip in skips] == [
        (2, 8, 64, 128), (2, 8, 32, 64), (2, 8, 16, 32), (2, 16, 8, 16),
    ]  # fmt: skip


def test_skips_are_the_inputs_of_the_encoders_down_blocks(model: DOD) -> None:
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for block in model.encoder.encoder.down_blocks
    ]
    _, skips = model.encoder(image())
    for hook in hooks:
        hook.remove()
    assert all(a is b for a, b in zip(seen, skips, strict=True)) and len(skips) == 4


def test_forward_takes_a_modulation_or_computes_it(model: DOD) -> None:
    pixels = image(2)
    with torch.no_grad():
        condition, modulation = model.modulation(pixels)
        assert condition.shape == (2, 32) and modulation.shape == (2, len(model.layers), 2, 4)
        assert snr_db(model(pixels), model(pixels, modulation)) >= 100
        assert snr_db(model(pixels), model(pixels, modulation.flip(0))) < 60


def test_zero_initialised_m_is_plain_lora() -> None:
    """With gamma = 1 and beta = 0 a conditional model equals a plain one with the same A and B."""
    conditional = DOD.from_preset(tiny())
    plain = DOD.from_preset(tiny(lora__conditional="none"))
    others = plain.adaptation_parameters()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(conditional.adaptation_parameters().items()):
            if ".lora_" in name:
                parameter.copy_(normal(*parameter.shape, seed=i) * 0.1)
                others[name].copy_(parameter)
        expected, found = plain(image()), conditional(image())
        assert snr_db(expected, found) >= 80
        assert snr_db(DOD.from_preset(tiny())(image()), found) < 60, "A and B must matter"


def trainable(model: DOD) -> set[int]:
    return {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("detail", [True, False])
@pytest.mark.parametrize("conditional", ["none", "unet", "unet+encoder"])
def test_ablations(conditional: str, detail: bool) -> None:
    model = randomise(DOD.from_preset(tiny(lora__conditional=conditional, detail__enabled=detail)))
    adapted = {part: len(list(clora.adapted_layers(m))) for part, m in parts(model).items()}
    conditioned = {part: len(list(clora.conditional_layers(m))) for part, m in parts(model).items()}
    assert min(adapted.values()) > 20
    assert conditioned["unet"] == (0 if conditional == "none" else adapted["unet"])
    assert conditioned["encoder"] == (adapted["encoder"] if conditional == "unet+encoder" else 0)
    assert len(model.layers) == sum(conditioned.values())
    assert not list(clora.adapted_layers(model.decoder)) and not list(clora.adapted_layers(model.mfm))

    stage_1, stage_2 = model.adaptation_parameters(), model.detail_parameters()
    expected = {id(p) for name, p in model.named_parameters() if ".lora_" in name or name.startswith("decoder.detail.")}
    if conditional != "none":
        expected |= {id(p) for p in model.mfm.network.parameters()}
    assert {id(p) for p in (*stage_1.values(), *stage_2.values())} == trainable(model) == expected
    assert len(stage_1) + len(stage_2) == len(expected)
    assert bool(stage_2) == detail

    pixels = image(2)
    _, modulation = model.modulation(pixels)
    restored = model(pixels, modulation)
    assert modulation.shape == (2, len(model.layers), 2, 4) and restored.shape == pixels.shape
    restored.square().mean().backward()
    without = [name for name, p in {**stage_1, **stage_2}.items() if p.grad is None]
    assert not without


def parts(model: DOD) -> dict[str, nn.Module]:
    return {"unet": model.unet.unet, "encoder": model.encoder.encoder}


def test_conditional_encoder_follows_the_modulation() -> None:
    model = randomise(DOD.from_preset(tiny(lora__conditional="unet+encoder")))
    first = model.layers.index(next(name for name in model.layers if name.startswith("encoder.")))
    assert all(name.startswith("unet." if i < first else "encoder.") for i, name in enumerate(model.layers))
    modulation = normal(1, len(model.layers), 2, 4)
    with torch.no_grad():
        latent, _ = model.encode(image(), modulation)
        changed = modulation.clone()
        changed[:, first:] += 1
        assert snr_db(latent, model.encode(image(), changed)[0]) < 60
        changed = modulation.clone()
        changed[:, :first] += 1
        assert snr_db(latent, model.encode(image(), changed)[0]) >= 100
        merged = clora.merged_copy(model.encoder, modulation[0])
        assert snr_db(latent, merged(image())[0]) >= 80


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_ranks(rank: int) -> None:
    model = DOD.from_preset(tiny(lora__rank=rank, lora__alpha=8))
    for name, parameter in model.adaptation_parameters().items():
        if name.endswith("lora_A.weight"):
            assert parameter.shape[0] == rank
        if name.endswith("lora_B.weight"):
            assert parameter.shape[1] == rank and not parameter.any()
    _, layer = next(clora.conditional_layers(model.unet.unet))
    assert layer.scaling[clora.ADAPTER] == 8 / rank
    assert model.mfm.network(normal(2, 32)).shape == (2, len(model.layers), 2, rank)


def test_a_seed_determines_the_base() -> None:
    torch.manual_seed(1)
    first = DOD.from_preset(tiny())
    torch.manual_seed(2)
    assert DOD.from_preset(tiny()).base_sha256 == first.base_sha256
    assert DOD.from_preset(tiny(base__seed=1)).base_sha256 != first.base_sha256
    state = torch.get_rng_state()
    load_base(tiny())
    assert torch.equal(torch.get_rng_state(), state)
