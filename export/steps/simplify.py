"""The exact simplifications as an artefact of the build: what they save, and that the model computes what it did."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from dod.model.dod import DOD
from export import report
from export.cache import BuildCache, hash_sources
from export.graphs import costs
from export.graphs.components import meta_copy
from export.graphs.simplify import simplify
from export.parity.compare import ParityResult, compare_output
from export.parity.reference import DECODED, TorchPipeline
from export.parity.runs import Values
from export.precision.calibration import load_image
from export.preflight import ROOT

RECORD = "report/costs.json"
SOURCES = [ROOT / "export" / f"{name}.py" for name in ("graphs/costs", "steps/simplify")]


def measured(
    cache: BuildCache, model: DOD, photograph: Path, inputs: Mapping[str, object], explaining: bool
) -> tuple[list[ParityResult], Values]:
    """Simplify the model in place; the figure that holds it against what it was, measured where it is stale.

    With it, where it was measured, every value along the simplified chain, by name as `run_pipeline` gives them: the
    proof's reference has not to compute the same again. inputs: what identifies the model, its code and the photograph.
    """
    inputs = {**inputs, "measured by": hash_sources(SOURCES), "torch": torch.__version__}
    if cache.fresh(RECORD, inputs) or explaining:
        simplify(model)
        return report.figures_of(json.loads(cache.path(RECORD).read_text())["figures"]) if not explaining else [], {}
    start, image = time.monotonic(), load_image(photograph, model)
    before = costs.costs(meta_copy(model), folded=False)
    expected = TorchPipeline(model).restore(image.image, image.crops)[DECODED].numpy()
    simplify(model)
    after = costs.costs(meta_copy(model))
    found = {name: value.numpy() for name, value in TorchPipeline(model).restore(image.image, image.crops).items()}
    figures = [compare_output(image.name, "auto", "pipeline", "simplified", expected, found.pop(DECODED))]
    cache.path(RECORD).unlink(missing_ok=True)  # it may be a link to the file of the bundle before
    record = {"graphs": costs.rows(before, after), "figures": report.rows(figures)}
    cache.path(RECORD).write_text(json.dumps(record, indent=1) + "\n")
    cache.record(RECORD, inputs, time.monotonic() - start)
    return figures, found
