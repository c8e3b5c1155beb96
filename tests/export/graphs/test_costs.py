"""Costs: correct by hand, and lower after the simplifications."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dod.model.dod import DOD
from export.graphs import components
from export.graphs.costs import Cost, cost, costs, rows, section
from export.graphs.simplify import simplify
from tests.dod.small_model import tiny


class Small(nn.Module):
    """A convolution, a sum, a view; a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(7, 7)

    def forward(self, image: Tensor) -> Tensor:
        found = self.conv(image)
        return (found + found).flatten(1)


def test_one_convolution_by_hand() -> None:
    planned = components.GraphPlan(
        Small().to("meta"), {"image": torch.empty(2, 3, 8, 6, device="meta")}, {}, ("out",), 1
    )
    pixels = 2 * 8 * 6
    moved = (3 * pixels + 3 * 5 * 9 + 5 + 5 * pixels) + 3 * 5 * pixels
    assert cost(planned) == Cost(2, 3 * 5 * 9 + 5, pixels * 3 * 5 * 9, 4 * moved)


def test_simplifications_save_operators() -> None:
    model = DOD.from_preset(tiny())
    before = costs(components.meta_copy(model), folded=False)
    other = copy.deepcopy(model)
    simplify(other)
    after = costs(components.meta_copy(other))
    assert before.keys() == after.keys() == components.graphs_of(model).keys()
    for name in components.graphs_of(model):
        assert after[name].operators < before[name].operators, name
        doubled = name in ("unet_dynamic", "unet_merged", "decoder")
        assert after[name].multiply_adds < before[name].multiply_adds or not doubled
        assert after[name].multiply_adds <= before[name].multiply_adds
        # the encoder loses few parameters; the decoder's transposed kernels have 16 taps instead of 9
        assert (after[name].parameters < before[name].parameters) or name in ("encoder", "decoder")
    written = section(rows(before, after))
    assert f"{before['decoder'].operators} → {after['decoder'].operators}" in written and "unet_merged" in written
