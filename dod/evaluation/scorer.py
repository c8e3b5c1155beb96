"""Scorer that runs metrics on one image after another, so that a folder does not have to fit in memory."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from PIL import Image

from dod.data.images import Pixels, degradation_of
from dod.errors import ConfigError, DataError
from dod.evaluation.metrics import CORE, Metric, core_settings, core_values
from dod.evaluation.perceptual import PERCEPTUAL, PerceptualMetric, open_metric
from dod.evaluation.scores import EvaluationResult, Score, summarise

__all__ = ["Scorer", "find_metrics"]


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """Return metrics by name.

    Args:
        names: names of metrics.

    Returns:
        The metrics in the given order, without repetitions.

    Raises:
        ConfigError: unknown metric.
    """
    known = {**CORE, **PERCEPTUAL}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"unknown metric {name!r}{hint}: choose one of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


class Scorer:
    """Metrics of a series of images, as a context manager: images for metrics of sets are kept in a temporary folder.

    All metrics are loaded at the start, so that a missing one is an error before any image is read.

    Args:
        names: names of metrics.
        device: device of perceptual metrics.

    Raises:
        ConfigError: unknown metric.
        DataError: pyiqa or weights are missing.
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
        self, exception: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.cleanup()

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Exact variant of each metric, as JSON values."""
        return {
            metric.name: dict(opened.settings)
            if (opened := self._opened.get(metric.name))
            else core_settings(metric.name)
            for metric in self.metrics
        }

    def add(self, name: str, output: Pixels, truth: Pixels) -> Score:
        """Measure one image.

        Args:
            name: name of the image; its first folder is the degradation.
            output: restored image, uint8 [H, W, 3].
            truth: clean image, uint8 [H, W, 3].

        Returns:
            Its values.

        Raises:
            DataError: the images cannot be compared, or a metric fails.
        """
        values = core_values(name, output, truth, [metric.name for metric in self.metrics])
        try:
            for metric, opened in self._opened.items():
                if metric not in self._sets:
                    values[metric] = opened.of_image(output, truth)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if self._sets:
            for role, image in (("output", output), ("truth", truth)):
                path = self._folder(role, degradation_of(name)) / f"{len(self._scores)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, compress_level=1)
        self._scores.append(Score(name, values))
        return self._scores[-1]

    def result(self) -> EvaluationResult:
        """Return all values, their means, and metrics of sets.

        Returns:
            The results.

        Raises:
            DataError: there are no images.
        """
        degradations = dict.fromkeys(degradation_of(each.name) for each in self._scores)
        of_sets = {
            degradation: {
                name: self._opened[name].of_sets(
                    self._folder("output", degradation), self._folder("truth", degradation)
                )
                for name in self._sets
            }
            for degradation in degradations
        }
        return summarise(self.metrics, self._scores, of_sets)

    def _folder(self, role: str, degradation: str) -> Path:
        return Path(self._kept.name, role, degradation if degradation != "." else "all")
