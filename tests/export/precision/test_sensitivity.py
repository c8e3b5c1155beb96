"""The error that components and blocks add in fp16."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from dod.model.dod import DOD
from export.graphs.fp16 import COMPONENTS, fp16_copy
from export.precision.calibration import load_image, restore
from export.precision.ranges import CalibrationReference
from export.precision.sensitivity import candidates, component_quality, rank


def test_candidates_are_blocks_and_the_layers_outside_them(model: DOD) -> None:
    found = candidates(model)
    assert "unet.unet.conv_out" in found and "mfm.network" in found and len(set(found)) == len(found)
    assert not [name for name in found if any(name.startswith(f"{other}.") for other in found)], "none in another"


def test_an_overflow_is_the_components_own(planted: DOD, paths: list[Path]) -> None:
    image = load_image(paths[0], planted)
    reference = CalibrationReference(image, restore(planted, image))
    qualities = component_quality(planted, fp16_copy(planted, ()), reference)
    assert qualities.keys() == set(COMPONENTS)
    assert qualities["decoder"].psnr_db == -math.inf and qualities["encoder"].psnr_db > 40


def test_the_worst_module_ranks_first(model: DOD, paths: list[Path]) -> None:
    image = load_image(paths[0], model)
    reference, fp16 = CalibrationReference(image, restore(model, image)), fp16_copy(model, ())
    with torch.no_grad():
        fp16.decoder.decoder.conv_out.weight *= 1.2
    ranked, cost = rank(model, fp16, reference, ())
    assert set(ranked) == set(candidates(model)) and ranked[0] == "decoder.decoder.conv_out"
    assert max(cost, key=lambda name: cost[name]) == "decoder"
    assert set(ranked) - set(rank(model, fp16, reference, ("decoder.decoder.conv_out",))[0]) == {ranked[0]}
