"""The tasks that quality is measured on, and what came of one photograph of one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dod.data.degradations import degrade, rng_for
from dod.evaluation.scores import Score

__all__ = ["CEILING", "TASKS", "Result", "Task", "spoil"]

CEILING = 60.0
"""PSNR in dB from which on an image counts as unchanged. Means of PSNR take no more, or one such image would decide."""


@dataclass(frozen=True)
class Task:
    """A way to spoil a photograph; `degradation` None leaves it clean. fixed: parameters that are not drawn."""

    name: str
    degradation: str | None
    fixed: Mapping[str, Any] = field(default_factory=dict)


TASKS = (
    Task("clean", None),
    Task("noise-15", "noise", {"sigma": 15.0}),
    Task("noise-25", "noise", {"sigma": 25.0}),
    Task("noise-50", "noise", {"sigma": 50.0}),
    Task("haze", "haze"),
    Task("rain", "rain"),
    Task("blur", "blur"),
    Task("low-light", "low-light"),
)


@dataclass(frozen=True)
class Result:
    """One photograph of one task: scores and images, uint8 [H, W, 3], by "input", "classical", "output" and "truth".

    "truth" has no score, and "classical" is there where a classical method was asked for and the task has one.
    """

    task: str
    name: str
    scores: Mapping[str, Score]
    images: Mapping[str, np.ndarray]
    parameters: Mapping[str, object]


def spoil(task: Task, name: str, truth: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, object]]:
    """A photograph, uint8 [H, W, 3], degraded for this name and seed, and its parameters (of an array its hash)."""
    if task.degradation is None:
        return truth, {}
    image = truth.astype(np.float32) / np.float32(255)
    degraded, parameters = degrade(image, task.degradation, rng_for(name, task.degradation, seed), **task.fixed)
    recorded: dict[str, object] = {
        key: {"shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()}
        if isinstance(value, np.ndarray)
        else float(value)
        for key, value in parameters.items()
    }
    return np.rint(degraded * 255).astype(np.uint8), recorded
