"""The exact simplifications: applied to the model, and measured with the model as it was loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dod.model.dod import DOD
from export.cache import Artifact, writes
from export.graphs import costs
from export.graphs.components import meta_copy
from export.graphs.simplify import simplify
from export.parity.compare import Figure, figure
from export.parity.reference import FIRST, Values
from export.precision.ranges import Outcome, Sample, load_image, restore
from export.results import from_rows, rows
from export.sources import hash_sources

__all__ = ["COSTS", "Simplification", "read_costs", "read_results"]

COSTS = "report/costs.json"
SOURCES = ("export/precision", "export/parity/compare.py", "export/steps/simplification.py")


class Simplification:
    """The exact simplifications of one model, applied once: while they are measured, or without a measurement.

    Args:
        model: the model as it was loaded; it is simplified in place.
        image: the calibration image to measure with.
        inputs: what decides the result, as inputs of an artefact: the model, its code and the image.

    Attributes:
        values: every value of the simplified model on the image, by name, where it was measured. The parity step then
            need not compute the same reference again.
    """

    def __init__(self, model: DOD, image: Path, inputs: Mapping[str, Any]) -> None:
        self.model = model
        self.values: Values = {}
        self._image, self._inputs = image, inputs
        self._applied = False

    def artifacts(self) -> list[Artifact]:
        """Return the record of costs and of the deviation. Making it simplifies the model."""
        inputs = {**self._inputs, "measured by": hash_sources(*SOURCES), "torch": torch.__version__}
        return [Artifact(COSTS, inputs, writes(self._measure))]

    def apply(self) -> None:
        """Simplify the model in place, unless it has been simplified by the measurement."""
        if not self._applied:
            simplify(self.model)
            self._applied = True

    def _measure(self, path: Path) -> None:
        model, image = self.model, load_image(self._image, self.model)
        before, expected = costs.costs(meta_copy(model), folded=False), restore(model, image).decoded
        self.apply()
        after, known = costs.costs(meta_copy(model)), {}
        found = restore(model, image, known=known)
        results = [figure(image.name, "auto", "pipeline", "simplified", expected, found.decoded)]
        self.values = _values(image, found, *(known[component, id(model)] for component in FIRST))
        data = {"graphs": costs.rows(before, after), "results": rows(results)}
        path.write_text(json.dumps(data, indent=1) + "\n")


def read_results(path: Path) -> list[Figure]:
    """Return the deviation of the simplified model.

    Args:
        path: the finished `COSTS`.
    """
    return from_rows(json.loads(path.read_text())["results"])


def read_costs(path: Path) -> dict[str, Any]:
    """Return the costs of each graph before and after; see `export.graphs.costs.rows`.

    Args:
        path: the finished `COSTS`.
    """
    return json.loads(path.read_text())["graphs"]


def _values(image: Sample, found: Outcome, mfm: tuple[Tensor, Tensor], encoder: tuple[Tensor, list[Tensor]]) -> Values:
    tensors = {"degraded": image.image, "crops": image.crops, "condition": mfm[0], "modulation": mfm[1]}
    tensors |= {"latent": encoder[0]} | {f"skip_{i}": skip for i, skip in enumerate(encoder[1])}
    values = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {**values, **found.decisions, "latent_restored": found.latent, "image": found.image}
