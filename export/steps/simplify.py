"""The exact simplifications as an artefact of the build: what they save, and that the model computes what it did."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dod.model.dod import DOD
from export import report
from export.cache import BuildCache, hash_sources
from export.graphs import costs
from export.graphs.components import meta_copy
from export.graphs.simplify import simplify
from export.parity.compare import Figure, figure
from export.parity.reference import FIRST, Values
from export.precision.ranges import Outcome, Sample, load_image, restore
from export.preflight import ROOT

RECORD = "report/costs.json"
SOURCES = [ROOT / "export" / f"{name}.py" for name in ("graphs/costs", "steps/simplify")]


def measured(
    cache: BuildCache, model: DOD, photograph: Path, inputs: Mapping[str, object], explaining: bool
) -> tuple[list[Figure], Values]:
    """Simplify the model in place; the figure that holds it against what it was, measured where it is stale.

    With it, where it was measured, every value along the simplified chain, by name as `run_pipeline` gives them: the
    proof's reference has not to compute the same again. inputs: what identifies the model, its code and the photograph.
    """
    inputs = {**inputs, "measured by": hash_sources(SOURCES), "torch": torch.__version__}
    if cache.fresh(RECORD, inputs) or explaining:
        simplify(model)
        return report.figures_of(json.loads(cache.path(RECORD).read_text())["figures"]) if not explaining else [], {}
    start, image = time.monotonic(), load_image(photograph, model)
    before, expected = costs.costs(meta_copy(model), folded=False), restore(model, image).decoded
    simplify(model)
    after, known = costs.costs(meta_copy(model)), {}
    found = restore(model, image, known=known)
    figures = [figure(image.name, "auto", "pipeline", "simplified", expected, found.decoded)]
    cache.path(RECORD).unlink(missing_ok=True)  # it may be a link to the file of the bundle before
    record = {"graphs": costs.rows(before, after), "figures": report.rows(figures)}
    cache.path(RECORD).write_text(json.dumps(record, indent=1) + "\n")
    cache.record(RECORD, inputs, time.monotonic() - start)
    return figures, _values(image, found, *(known[component, id(model)] for component in FIRST))


def _values(image: Sample, found: Outcome, mfm: tuple[Tensor, Tensor], encoder: tuple[Tensor, list[Tensor]]) -> Values:
    tensors = {"degraded": image.image, "crops": image.crops, "condition": mfm[0], "modulation": mfm[1]}
    tensors |= {"latent": encoder[0]} | {f"skip_{i}": skip for i, skip in enumerate(encoder[1])}
    values = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {**values, **found.decisions, "latent_restored": found.latent, "image": found.image}
