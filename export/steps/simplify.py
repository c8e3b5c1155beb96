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
from export.cache import Workshop, hash_sources
from export.graphs import costs
from export.graphs.components import skeleton
from export.graphs.simplify import simplify
from export.parity.chain import FIRST, Values
from export.parity.compare import Figure, figure
from export.precision.ranges import Outcome, Picture, load_picture, restore
from export.preflight import ROOT

RECORD = "report/costs.json"
SOURCES = [ROOT / "export" / f"{name}.py" for name in ("graphs/costs", "steps/simplify")]


def measured(
    shop: Workshop, model: DOD, photograph: Path, inputs: Mapping[str, object], explaining: bool
) -> tuple[list[Figure], Values]:
    """Simplify the model in place; the figure that holds it against what it was, measured where it is stale.

    With it, where it was measured, every value along the simplified chain, by name as `run_chain` gives them: the
    proof's reference has not to compute the same again. inputs: what identifies the model, its code and the photograph.
    """
    inputs = {**inputs, "measured by": hash_sources(SOURCES), "torch": torch.__version__}
    if shop.fresh(RECORD, inputs) or explaining:
        simplify(model)
        return report.figures_of(json.loads(shop.path(RECORD).read_text())["figures"]) if not explaining else [], {}
    start, picture = time.monotonic(), load_picture(photograph, model)
    before, expected = costs.costs(skeleton(model), folded=False), restore(model, picture).decoded
    simplify(model)
    after, known = costs.costs(skeleton(model)), {}
    found = restore(model, picture, known=known)
    figures = [figure(picture.name, "auto", "chain", "simplified", expected, found.decoded)]
    shop.path(RECORD).unlink(missing_ok=True)  # it may be a link to the file of the bundle before
    record = {"graphs": costs.rows(before, after), "figures": report.rows(figures)}
    shop.path(RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shop.record(RECORD, inputs, time.monotonic() - start)
    return figures, _values(picture, found, *(known[component, id(model)] for component in FIRST))


def _values(
    picture: Picture, found: Outcome, mfm: tuple[Tensor, Tensor], encoder: tuple[Tensor, list[Tensor]]
) -> Values:
    tensors = {"degraded": picture.image, "crops": picture.crops, "condition": mfm[0], "modulation": mfm[1]}
    tensors |= {"latent": encoder[0]} | {f"skip_{i}": skip for i, skip in enumerate(encoder[1])}
    values = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {**values, **found.decisions, "latent_restored": found.latent, "image": found.image}
