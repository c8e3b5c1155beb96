"""Runs the metrics that are asked for over one image after another, so that no folder has to fit into memory."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dod.data.images import task_of
from dod.errors import ConfigError, DataError
from dod.evaluation.metrics import CORE, Metric, core_settings, core_values
from dod.evaluation.perceptual import PERCEPTUAL, PerceptualMetric, open_metric
from dod.evaluation.scores import Result, Score, summarise

__all__ = ["Scorer", "find_metrics"]


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, each once, in the order given. Raises ConfigError for an unknown one."""
    known = {**CORE, **PERCEPTUAL}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown metric {name!r}{hint} It is one of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


class Scorer:
    """Scores images one by one; a context, for metrics that see a whole task keep its images on the disk.

    Making it opens every metric, so that one that cannot be had is an error before any image is read: ConfigError for
    an unknown name, DataError where pyiqa or weights are missing.
    """

    def __init__(self, names: Sequence[str] = tuple(CORE), device: str = "cpu") -> None:
        self.metrics = find_metrics(names)
        self._opened: dict[str, PerceptualMetric] = {
            metric.name: open_metric(metric, device) for metric in self.metrics if metric.name in PERCEPTUAL
        }
        self._sets = [metric.name for metric in self.metrics if metric.sees == "set"]
        self._scores: list[Score] = []
        self._kept = TemporaryDirectory(prefix="dod-evaluate-")

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.cleanup()

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The exact variant of each metric, as JSON values."""
        return {
            metric.name: dict(opened.settings)
            if (opened := self._opened.get(metric.name))
            else core_settings(metric.name)
            for metric in self.metrics
        }

    def add(self, name: str, output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Score:
        """The figures of one output [H, W, 3] and its truth. Raises DataError, with the name, where one has none."""
        values = core_values(name, output, truth, [metric.name for metric in self.metrics])
        try:
            for metric, opened in self._opened.items():
                if metric not in self._sets:
                    values[metric] = opened.of_image(output, truth)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if self._sets:
            for kind, image in (("output", output), ("truth", truth)):
                path = self._folder(kind, task_of(name)) / f"{len(self._scores)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, compress_level=1)
        self._scores.append(Score(name, values))
        return self._scores[-1]

    def result(self) -> Result:
        """All figures, means, and metrics that see a whole task. Raises DataError where there are no images."""
        tasks = dict.fromkeys(task_of(each.name) for each in self._scores)
        of_sets = {
            task: {
                name: self._opened[name].of_sets(self._folder("output", task), self._folder("truth", task))
                for name in self._sets
            }
            for task in tasks
        }
        return summarise(self.metrics, self._scores, of_sets)

    def _folder(self, kind: str, task: str) -> Path:
        return Path(self._kept.name, kind, task if task != "." else "all")
