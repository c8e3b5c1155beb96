"""Objectives of the two stages: loss terms, gradients, windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dod.errors import TrainingError
from dod.model.clora import adapted_layers, factors
from dod.model.dod import DOD
from dod.training.stage_objectives import AdaptationObjective, DetailObjective
from tests.dod.small_model import image, normal, smaller
from tests.dod.small_training import Pairs


def test_a_trained_decoder_keeps_decoding_without_the_modules() -> None:
    model = DOD.from_preset(smaller())
    batch = [torch.stack(each) for each in zip(*(Pairs()[i] for i in range(2)), strict=True)]

    def terms(**options: Any) -> dict[str, Tensor]:
        return DetailObjective(model, **options)(batch, torch.Generator())

    assert terms().keys() == terms(decoder=True, plain=0.0).keys() == {"rec", "ssim"}
    plain, twice = (terms(decoder=True, plain=weight)["plain"] for weight in (0.5, 1.0))
    assert twice.item() == pytest.approx(2 * plain.item())
    rec = terms()["rec"].item()
    with torch.no_grad():
        model.decoder.base_parameters()["decoder.conv_out.bias"].add_(0.1)
        moved = terms(decoder=True, plain=1.0)
    assert moved["plain"].item() != twice.item() and moved["rec"].item() != rec


def test_distribution_matching_trains_two_networks_separately() -> None:
    model = DOD.from_preset(smaller())
    objective = AdaptationObjective(model, rec=0.0, dmd=1.0)
    (_, adaptation), (_, fake) = objective.groups()
    batch = [torch.stack(each) for each in zip(*(Pairs()[i] for i in range(2)), strict=True)]
    for moved in (factors(layer)[1] for _, layer in adapted_layers(objective.fake)):
        moved.data.normal_(std=0.1)  # with B = 0 both denoisers would be equal and the gradient zero
    terms = objective(batch, torch.Generator().manual_seed(0))
    assert terms.keys() == {"dmd", "diff"}
    terms["dmd"].backward(retain_graph=True)
    assert all(p.grad is None for p in fake.values()) and any(p.grad is not None for p in adaptation.values())
    held = {name: p.grad.clone() for name, p in adaptation.items() if p.grad is not None}
    terms["diff"].backward()
    assert all(p.grad is not None for p in fake.values())
    assert all(torch.equal(adaptation[name].grad, gradient) for name, gradient in held.items())
    shared = {p.data_ptr() for p in model.unet.unet.parameters()}
    assert {p.data_ptr() for p in objective.real.parameters()} <= shared, "the base is copied"


def test_a_window_has_the_condition_of_the_whole_image() -> None:
    """Both images of a pair are cut to the same window; c comes from the whole image."""
    model = DOD.from_preset(smaller())
    clean = image(3, 64, 48)
    degraded = (clean + 0.1 * normal(3, 3, 64, 48)).clamp(-1, 1)
    objective = AdaptationObjective(model, dmd=0.0, tile_size=[16])
    modulation, cut, truth = objective.pair((degraded, clean), torch.Generator().manual_seed(1))
    assert torch.equal(modulation, model.modulation(degraded)[1])
    assert cut.shape == truth.shape == (3, 3, 16, 16)
    corners = []
    for i in range(3):
        windows = clean[i].unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        ((y, x),) = (windows == truth[i]).all(dim=(2, 3, 4)).nonzero().tolist()
        assert torch.equal(cut[i], degraded[i, :, y : y + 16, x : x + 16])
        corners.append((y, x))
    assert len(set(corners)) > 1
    generator, several = torch.Generator().manual_seed(1), AdaptationObjective(model, dmd=0.0, tile_size=[16, 32])
    assert {several.pair((degraded, clean), generator)[1].shape[-1] for _ in range(16)} == {16, 32}
    whole = AdaptationObjective(model, dmd=0.0).pair((degraded, clean), torch.Generator())
    assert torch.equal(whole[1], degraded) and torch.equal(whole[2], clean)
    with pytest.raises(TrainingError, match="56.*48x64"):
        AdaptationObjective(model, dmd=0.0, tile_size=[56]).pair((degraded, clean), torch.Generator())
