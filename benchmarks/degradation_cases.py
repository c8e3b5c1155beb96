"""The degradation cases that restoration quality is measured on, and the result of one photograph in one case."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dod.data.degradations import degrade, rng_for
from dod.evaluation.scores import Score

__all__ = ["CASES", "PSNR_CEILING", "DegradationCase", "QualityResult", "degrade_photograph"]

PSNR_CEILING = 60.0
"""PSNR in dB above which an image counts as unchanged. Means clip PSNR to it, so that no single image dominates."""


@dataclass(frozen=True)
class DegradationCase:
    """A degradation, with or without fixed parameters.

    Attributes:
        name: name of the case, such as `noise-25`.
        degradation: name of the degradation; None leaves the photograph clean.
        fixed: parameters that are not drawn at random.
    """

    name: str
    degradation: str | None
    fixed: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    DegradationCase("clean", None),
    DegradationCase("noise-15", "noise", {"sigma": 15.0}),
    DegradationCase("noise-25", "noise", {"sigma": 25.0}),
    DegradationCase("noise-50", "noise", {"sigma": 50.0}),
    DegradationCase("haze", "haze"),
    DegradationCase("rain", "rain"),
    DegradationCase("blur", "blur"),
    DegradationCase("low-light", "low-light"),
)


@dataclass(frozen=True)
class QualityResult:
    """Scores and images of one photograph in one case.

    Attributes:
        case: name of the case.
        name: name of the photograph.
        scores: scores of `input`, `output` and, if a classical method ran, `classical`.
        images: uint8 [H, W, 3] by the same names, and `truth`.
        parameters: parameters of the degradation.
    """

    case: str
    name: str
    scores: Mapping[str, Score]
    images: Mapping[str, np.ndarray]
    parameters: Mapping[str, object]


def degrade_photograph(
    case: DegradationCase, name: str, truth: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, object]]:
    """Degrade a photograph; the same name and seed give the same image.

    Args:
        case: degradation to apply.
        name: name of the photograph.
        truth: the clean photograph, uint8 [H, W, 3].
        seed: seed of the random parameters.

    Returns:
        The degraded image, uint8 [H, W, 3], and the parameters as JSON values; an array is recorded by shape and
        SHA-256.
    """
    if case.degradation is None:
        return truth, {}
    image = truth.astype(np.float32) / np.float32(255)
    degraded, parameters = degrade(image, case.degradation, rng_for(name, case.degradation, seed), **case.fixed)
    recorded: dict[str, object] = {
        key: {"shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()}
        if isinstance(value, np.ndarray)
        else float(value)
        for key, value in parameters.items()
    }
    return np.rint(degraded * 255).astype(np.uint8), recorded
