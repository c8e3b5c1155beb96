"""The exact simplifications: applied to the model, and measured with the model as it was loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dod.model.dod import DOD
from export.cache import Artifact, writes
from export.graphs import costs
from export.graphs.components import meta_copy
from export.graphs.simplify import simplify
from export.parity.compare import ParityResult, compare_output
from export.parity.reference import DECODED, TorchPipeline
from export.parity.runs import Values
from export.precision.calibration import load_image
from export.results import from_rows, rows
from export.sources import hash_sources

__all__ = ["COSTS", "Simplification", "read_costs", "read_results"]

COSTS = "report/costs.json"
SOURCES = ("export/precision/calibration.py", "export/parity", "export/steps/simplification.py")


class Simplification:
    """The exact simplifications of one model, applied once: while they are measured, or without a measurement.

    Args:
        model: the model as it was loaded; it is simplified in place.
        image: the calibration image to measure with.
        inputs: what decides the result, as inputs of an artifact: the model, its code and the image.

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
        before = costs.costs(meta_copy(model), folded=False)
        expected = TorchPipeline(model).restore(image.image, image.crops)[DECODED].numpy()
        self.apply()
        after = costs.costs(meta_copy(model))
        found = {name: value.numpy() for name, value in TorchPipeline(model).restore(image.image, image.crops).items()}
        results = [compare_output(image.name, "auto", "pipeline", "simplified", expected, found.pop(DECODED))]
        self.values = found
        data = {"graphs": costs.rows(before, after), "results": rows(results)}
        path.write_text(json.dumps(data, indent=1) + "\n")


def read_results(path: Path) -> list[ParityResult]:
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
