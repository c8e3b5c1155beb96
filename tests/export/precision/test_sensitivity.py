"""The error that components and blocks add in fp16."""

from __future__ import annotations

import math
from pathlib import Path

from dod.model.dod import DOD
from export.graphs.fp16 import COMPONENTS, fp16_copy
from export.precision.calibration import load_image, restore
from export.precision.ranges import CalibrationReference
from export.precision.sensitivity import candidates, component_quality, rank
from tests.export.planted import BLOCK


def test_candidates_are_blocks_and_the_layers_outside_them(model: DOD) -> None:
    found = candidates(model)
    assert "unet.unet.conv_out" in found and "mfm.network" in found and len(set(found)) == len(found)
    assert not [name for name in found if any(name.startswith(f"{other}.") for other in found)], "none in another"


def test_the_planted_block_ranks_first(planted: DOD, paths: list[Path]) -> None:
    image = load_image(paths[0], planted)
    reference, fp16 = CalibrationReference(image, restore(planted, image)), fp16_copy(planted, ())
    qualities = component_quality(planted, fp16, reference)
    assert qualities.keys() == set(COMPONENTS)
    assert qualities["decoder"].psnr_db == -math.inf and qualities["encoder"].psnr_db > 40
    ranked, cost = rank(planted, fp16, reference, ())
    assert BLOCK.startswith(ranked[0]) and max(cost, key=lambda name: cost[name]) == "decoder"
    assert ranked[0] not in rank(planted, fp16, reference, (ranked[0],))[0]
