"""Values of metrics, their means by degradation, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dod.data.images import degradation_of
from dod.errors import DataError
from dod.evaluation.metrics import Metric
from dod_runtime.console import table

__all__ = ["EvaluationResult", "Score", "as_json", "markdown", "mean", "summarise", "text"]


@dataclass(frozen=True)
class Score:
    """Values of one image, or means.

    Attributes:
        name: name of the image or degradation.
        values: values by the name of the metric. PSNR is infinite for equal images.
    """

    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class EvaluationResult:
    """All values of an evaluation.

    Attributes:
        metrics: the metrics.
        images: values of each image.
        degradations: mean values of each degradation.
        mean: mean of the degradations, which all have the same weight.
    """

    metrics: Sequence[Metric]
    images: Sequence[Score]
    degradations: Sequence[Score]
    mean: Score


def mean(scores: Sequence[Score], name: str = "mean") -> Score:
    """Average each metric over scores. Decibels are averaged too, as in papers.

    Args:
        scores: the scores.
        name: name of the result.

    Returns:
        The means.

    Raises:
        DataError: there are no scores.
    """
    if not scores:
        raise DataError("no images to average: the folder is empty")
    keys = scores[0].values
    return Score(name, {key: float(np.mean([each.values[key] for each in scores])) for key in keys})


def summarise(
    metrics: Sequence[Metric], images: Sequence[Score], of_sets: Mapping[str, Mapping[str, float]] | None = None
) -> EvaluationResult:
    """Average images by degradation, and degradations: the averages of the paper's Table 1, where each is a test set.

    Args:
        metrics: the metrics.
        images: values of each image.
        of_sets: values of metrics of sets, by degradation.

    Returns:
        The results.

    Raises:
        DataError: there are no images.
    """
    groups: dict[str, list[Score]] = {}
    for each in images:
        groups.setdefault(degradation_of(each.name), []).append(each)
    degradations = [
        Score(name, {**mean(scores).values, **((of_sets or {}).get(name) or {})}) for name, scores in groups.items()
    ]
    return EvaluationResult(metrics, images, degradations, mean(degradations))


def text(result: EvaluationResult) -> str:
    """Format the table of the images and, if there are several, that of the degradations.

    Args:
        result: the results.

    Returns:
        Plain text.
    """
    return "\n\n".join(_tables(result, markdown=False))


def markdown(result: EvaluationResult, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the tables, and the exact variant of each metric.

    Args:
        result: the results.
        settings: exact variant of each metric.

    Returns:
        Markdown.
    """
    notes = [f"- {each.label}: {settings[each.name]['variant']}; {each.colour}" for each in result.metrics]
    return "\n\n".join([*reversed(_tables(result, markdown=True)), "\n".join(notes)])


def as_json(result: EvaluationResult, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return results and settings as JSON values.

    Values that are not finite, such as the PSNR of equal images, are null.

    Args:
        result: the results.
        settings: exact variant of each metric.

    Returns:
        JSON values.
    """

    def plain(each: Score) -> dict[str, float | None]:
        return {key: value if math.isfinite(value) else None for key, value in each.values.items()}

    counts = [degradation_of(each.name) for each in result.images]
    metrics = {
        each.name: {
            "label": each.label,
            "better": "higher" if each.higher_is_better else "lower",
            "colour": each.colour,
            **settings[each.name],
        }
        for each in result.metrics
    }
    return {
        "metrics": metrics,
        "images": [{"name": each.name, **plain(each)} for each in result.images],
        "degradations": {each.name: {"images": counts.count(each.name), **plain(each)} for each in result.degradations},
        "mean": plain(result.mean),
    }


def _tables(result: EvaluationResult, markdown: bool) -> list[str]:
    def rows(scores: Sequence[Score]) -> list[list[str]]:
        return [[each.name, *(_cell(each, metric) for metric in result.metrics)] for each in scores]

    labels, align = [metric.label for metric in result.metrics], "l" + "r" * len(result.metrics)
    if len(result.degradations) == 1:
        return [table(["image", *labels], rows([*result.images, result.mean]), align, markdown)]
    means = rows([*result.degradations, Score("mean of all", result.mean.values)])
    return [
        table(["image", *labels], rows(result.images), align, markdown),
        table(["degradation", *labels], means, align, markdown),
    ]


def _cell(score: Score, metric: Metric) -> str:
    return f"{score.values[metric.name]:.{metric.digits}f}" if metric.name in score.values else "-"
