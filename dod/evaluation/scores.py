"""Figures of images, their means for each task and over the tasks, and the tables of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dod.data.images import task_of
from dod.errors import DataError
from dod.evaluation.metrics import Metric

__all__ = ["Result", "Score", "as_json", "markdown", "mean", "summarise", "table", "text"]


@dataclass(frozen=True)
class Score:
    """The figures of one image, or a mean, by the metric's name. PSNR is infinite for equal images."""

    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """All figures of an evaluation. tasks: the mean of each; mean: that of the tasks, which count alike."""

    metrics: Sequence[Metric]
    images: Sequence[Score]
    tasks: Sequence[Score]
    mean: Score


def mean(scores: Sequence[Score], name: str = "mean") -> Score:
    """The mean of each metric, of the decibels too, as papers do. Raises DataError where there are no scores."""
    if not scores:
        raise DataError("no images to take a mean of")
    keys = scores[0].values
    return Score(name, {key: float(np.mean([each.values[key] for each in scores])) for key in keys})


def summarise(
    metrics: Sequence[Metric], images: Sequence[Score], of_sets: Mapping[str, Mapping[str, float]] | None = None
) -> Result:
    """The means of the tasks, and of these: what the paper's Table 1 averages, where a task is a test set.

    of_sets: by task, the figures of metrics that see all of a task. Raises DataError where there are no images.
    """
    groups: dict[str, list[Score]] = {}
    for each in images:
        groups.setdefault(task_of(each.name), []).append(each)
    tasks = [
        Score(task, {**mean(scores).values, **((of_sets or {}).get(task) or {})}) for task, scores in groups.items()
    ]
    return Result(metrics, images, tasks, mean(tasks))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], markdown: bool = False) -> str:
    """A table, the first column on the left and numbers on the right; SSIM-like cells with 4 digits are given as texts.

    >>> print(table(["image", "PSNR"], [["a", "31.20"]]))
    image   PSNR
    a        31.20
    """
    lines = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headers))]
    texts = [
        [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line) for line in texts)
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [texts[0], rule, *texts[1:]])


def text(result: Result) -> str:
    """The tables of the images and, where there are several, of the tasks."""
    return "\n\n".join(_tables(result, markdown=False))


def markdown(result: Result, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables, and what was computed. settings: the exact variant of each metric."""
    what = [f"- {each.label}: {settings[each.name]['variant']}; {each.colour}" for each in result.metrics]
    return "\n\n".join([*reversed(_tables(result, markdown=True)), "\n".join(what)])


def as_json(result: Result, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """JSON values: what was computed, and the figures; null where one is not finite, as the PSNR of equal images."""

    def plain(each: Score) -> dict[str, float | None]:
        return {key: value if math.isfinite(value) else None for key, value in each.values.items()}

    counts = [task_of(each.name) for each in result.images]
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
        "tasks": {each.name: {"images": counts.count(each.name), **plain(each)} for each in result.tasks},
        "mean": plain(result.mean),
    }


def _tables(result: Result, markdown: bool) -> list[str]:
    def rows(scores: Sequence[Score]) -> list[list[str]]:
        return [[each.name, *(_cell(each, metric) for metric in result.metrics)] for each in scores]

    labels = [metric.label for metric in result.metrics]
    if len(result.tasks) == 1:
        return [table(["image", *labels], rows([*result.images, result.mean]), markdown)]
    tasks = rows([*result.tasks, Score("mean of tasks", result.mean.values)])
    return [table(["image", *labels], rows(result.images), markdown), table(["task", *labels], tasks, markdown)]


def _cell(score: Score, metric: Metric) -> str:
    return f"{score.values[metric.name]:.{metric.digits}f}" if metric.name in score.values else "-"
