"""Scaling and fitting of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dod.random_weights.scaling import BRANCH, deviations, fit, rescale, standardise
from tests.dod.small_model import image, normal


def test_rescaling_brings_every_layer_to_its_deviation() -> None:
    model = nn.Sequential()
    for name, layer in (("first", nn.Conv2d(3, 16, 3)), ("conv2", nn.Conv2d(16, 16, 3)), ("last", nn.Conv2d(16, 4, 1))):
        model.add_module(name, layer)
    x = image(2, 16, 16)
    rescale(model, lambda: model(x), torch.Generator().manual_seed(0))
    found = deviations(model, lambda: model(x))
    assert {name: deviation for name, (deviation, _) in found.items()} == {
        "first": pytest.approx(1, abs=0.05),
        "conv2": pytest.approx(BRANCH, abs=0.05),
        "last": pytest.approx(1, abs=0.05),
    }


def test_fit_is_least_squares() -> None:
    layer, truth = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    features = [normal(1, 3, 12, 12, seed=i) for i in range(3)]
    with torch.no_grad():
        fit(layer, features, [truth(x) for x in features], ridge=1e-8)
    assert torch.allclose(layer.weight, truth.weight, atol=1e-4) and torch.allclose(layer.bias, truth.bias, atol=1e-4)


def test_standardise_gives_each_channel_its_mean_and_deviation() -> None:
    layer, x = nn.Conv2d(3, 2, 1), normal(4, 3, 8, 8)
    with torch.no_grad():
        standardise(layer, x, [0.0, -17.0], [5.5, 1.0])
        y = layer(x)
    assert y.mean((0, 2, 3)).tolist() == pytest.approx([0, -17], abs=1e-4)
    assert y.std((0, 2, 3)).tolist() == pytest.approx([5.5, 1.0], rel=1e-4)
