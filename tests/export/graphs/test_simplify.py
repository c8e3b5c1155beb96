"""Each exact simplification compared with the original model, alone and together."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dod.model import clora
from dod.model.adm import ADMEncoder
from dod.model.dod import DOD, OneStepUNet
from export.graphs import simplify
from export.graphs.components import meta_copy, neutral_modulation
from export.graphs.costs import costs
from export.parity.compare import snr_db
from tests.dod.small_model import image, randomise, tiny

EXACT = 110.0
"""Minimum SNR in dB: float32 rounds in another order."""


@pytest.fixture
def twins() -> tuple[DOD, DOD]:
    """A model in which every parameter affects the result, and its copy."""
    model = randomise(DOD.from_preset(tiny()), strength=0.3)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    return model, copy.deepcopy(model)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_timestep(twins: tuple[DOD, DOD]) -> None:
    model, other = twins
    simplify.fold_timestep(other.unet)
    latent, modulation = torch.randn(2, 4, 8, 8), model.modulation(image(2))[1]
    with torch.no_grad():
        assert snr_db(model.unet(latent, modulation).numpy(), other.unet(latent, modulation).numpy()) > EXACT
    assert not [name for name, _ in other.unet.named_parameters() if "time_emb" in name]
    assert parameters(other.unet) < parameters(model.unet)


def test_h_space_of_diffusers(twins: tuple[DOD, DOD]) -> None:
    model, other = twins
    other.mfm.h_space = simplify.fold_h_space(other.mfm.h_space)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert snr_db(model.mfm.h_space(x).numpy(), other.mfm.h_space(x).numpy()) > EXACT
    assert not [name for name, _ in other.mfm.named_parameters() if "time_emb" in name]


def test_h_space_of_adm() -> None:
    torch.manual_seed(3)
    model = ADMEncoder(32, (1, 2), 1, (2,), 16).eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        folded = simplify.fold_h_space(copy.deepcopy(model))
        assert snr_db(expected.numpy(), folded(x).numpy()) > EXACT
    assert not [name for name, _ in folded.named_parameters() if "emb" in name]
    assert folded.channels == model.channels


def test_encoder(twins: tuple[DOD, DOD]) -> None:
    model, _ = twins
    folded = simplify.fold_encoder(model.encoder)
    with torch.no_grad():
        (latent, skips), (found, others) = model.encoder(image(2)), folded(image(2))
    assert found.dtype == torch.float32 and found.shape == latent.shape
    assert snr_db(latent.numpy(), found.numpy()) > EXACT
    assert all(snr_db(a.numpy(), b.numpy()) > EXACT for a, b in zip(skips, others, strict=True))
    assert "quant_conv" not in dict(folded.named_children()) and folded.encoder.conv_out.out_channels == 4


def test_details(twins: tuple[DOD, DOD]) -> None:
    model, other = twins
    simplify.fold_details(other)
    with torch.no_grad():
        latent, skips = model.encoder(image(2))
        expected, found = model.decoder(latent, skips), other.decoder(latent, skips)
        assert snr_db(expected.numpy(), found.numpy()) > EXACT
        assert snr_db(model.decoder(latent).numpy(), expected.numpy()) < 60  # the modules have an effect
    assert parameters(other.decoder) < parameters(model.decoder)


def test_upsampling(twins: tuple[DOD, DOD]) -> None:
    model, other = twins
    for part in (other.unet, other.decoder):
        simplify.fold_upsampling(part)
        simplify.fold_upsampling(part)  # a second call changes nothing
    latent, modulation = torch.randn(2, 4, 8, 12), model.modulation(image(2))[1]
    with torch.no_grad():
        expected, found = model.unet(latent, modulation), other.unet(latent, modulation)
        assert snr_db(expected.numpy(), found.numpy()) > EXACT
        edges = (..., [0, -1], slice(None)), (..., [0, -1])
        assert all(snr_db(expected[edge].numpy(), found[edge].numpy()) > EXACT for edge in edges)
        assert snr_db(model.decoder(latent).numpy(), other.decoder(latent).numpy()) > EXACT
    for part in ("unet", "decoder"):
        transposed = [each for each in getattr(other, part).modules() if isinstance(each, nn.ConvTranspose2d)]
        upsamplers = [name for name, _ in getattr(model, part).named_modules() if name.endswith("upsamplers.0")]
        assert len(transposed) == len(upsamplers) * (2 if part == "unet" else 1) > 0  # with LoRA's A in the UNet
    before, after = (costs(meta_copy(each)) for each in (model, other))
    for graph in ("unet_dynamic", "unet_merged", "decoder"):
        assert after[graph].multiply_adds < before[graph].multiply_adds


def test_upsampling_merges_as_it_branches(twins: tuple[DOD, DOD]) -> None:
    model, other = twins
    simplify.fold_upsampling(other.unet)
    latent, modulation = torch.randn(2, 4, 8, 8), model.modulation(image(1))[1]
    with torch.no_grad():
        expected = model.unet(latent, modulation.expand(2, -1, -1, -1))
        found = merged(other, modulation[0])(latent)
        assert snr_db(expected.numpy(), found.numpy()) > EXACT - 10
        with clora.merging(other.unet, modulation[0]):
            assert torch.equal(other.unet(latent, modulation), found)


def merged(model: DOD, modulation: torch.Tensor) -> OneStepUNet:
    unet = clora.merged_copy(model.unet, modulation)
    assert isinstance(unet, OneStepUNet)
    return unet


def test_merged(twins: tuple[DOD, DOD]) -> None:
    model, _ = twins
    plain = merged(model, model.modulation(image(1))[1][0])
    smaller = copy.deepcopy(plain)
    simplify.simplify_merged(smaller)
    latent = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert snr_db(plain(latent).numpy(), smaller(latent).numpy()) > EXACT
    names = dict(smaller.unet.named_parameters())
    assert not [name for name in names if name.endswith(("to_k.bias", "to_v.bias", "attn2.to_k.weight"))]
    assert [name for name in names if name.endswith("attn2.to_v.output")]


def test_the_whole_model_on_the_meta_device_too(twins: tuple[DOD, DOD]) -> None:
    model, other = twins
    simplify.simplify(other)
    with torch.no_grad():
        assert snr_db(model(image(2)).numpy(), other(image(2)).numpy()) > EXACT - 10
    assert other.layers == model.layers and neutral_modulation(other).shape == neutral_modulation(model).shape


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: model.encoder.encoder.conv_out.bias.data.add_(0.1),
        lambda model: model.decoder.detail[0].fuse.weight.data.mul_(1.01),
        lambda model: model.unet.unet.conv_norm_out.bias.data.add_(1e-3),
    ],
)
def test_a_fold_that_is_wrong_would_show(twins: tuple[DOD, DOD], damage: Callable[[DOD], object]) -> None:
    model, other = twins
    simplify.simplify(other)
    damage(other)
    with torch.no_grad():
        assert snr_db(model(image(2)).numpy(), other(image(2)).numpy()) < EXACT - 20
