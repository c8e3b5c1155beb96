"""The exact simplifications as an artefact of the build: what they save, and that the model computes what it did."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from dod.model import DOD
from export import costs, report
from export.artefacts import Workshop, hash_sources
from export.checks import ROOT
from export.parity import Figure, figure
from export.plans import skeleton
from export.ranges import load_picture, restore
from export.simplify import simplify

RECORD = "report/costs.json"
SOURCES = [ROOT / "export" / f"{name}.py" for name in ("costs", "simplify_step")]


def measured(
    shop: Workshop, model: DOD, photograph: Path, inputs: Mapping[str, object], explaining: bool
) -> list[Figure]:
    """Simplify the model in place; the figure that holds it against what it was, measured where it is stale.

    inputs: what identifies the model, its code and the photograph.
    """
    inputs = {**inputs, "measured by": hash_sources(SOURCES), "torch": torch.__version__}
    if shop.fresh(RECORD, inputs) or explaining:
        simplify(model)
        return report.figures_of(json.loads(shop.path(RECORD).read_text())["figures"]) if not explaining else []
    start, picture = time.monotonic(), load_picture(photograph, model)
    before, expected = costs.costs(skeleton(model), folded=False), restore(model, picture).image
    simplify(model)
    after, found = costs.costs(skeleton(model)), restore(model, picture).image
    figures = [figure(picture.name, "auto", "chain", "simplified", expected, found)]
    shop.path(RECORD).unlink(missing_ok=True)  # it may be a link to the file of the bundle before
    record = {"graphs": costs.rows(before, after), "figures": report.rows(figures)}
    shop.path(RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shop.record(RECORD, inputs, time.monotonic() - start)
    return figures
