"""Means and comparisons of the quality benchmark."""

from __future__ import annotations

import math

import pytest

from benchmarks.degradation_cases import CASES, PSNR_CEILING, QualityResult
from benchmarks.quality_report import as_json, compare_with_classical, mean_scores
from dod.evaluation.scores import Score


def result(case: str, name: str, **psnr: float) -> QualityResult:
    scores = {role: Score(name, {"psnr": value, "ssim": 0.5}) for role, value in psnr.items()}
    return QualityResult(case, name, scores, {}, {})


def test_means_clip_the_psnr_of_unchanged_images() -> None:
    results = [result("clean", "a", input=math.inf, output=40.0), result("clean", "b", input=math.inf, output=90.0)]
    means = mean_scores(results)
    assert means["input"].values["psnr"] == PSNR_CEILING
    assert means["output"].values["psnr"] == pytest.approx((40 + PSNR_CEILING) / 2)
    (clean,) = [case for case in CASES if case.name == "clean"]
    assert as_json(clean, results)["images"]["a"]["input"]["psnr"] is None


def test_cases_of_one_degradation_have_equal_weight() -> None:
    results = [
        result("noise-15", "a", input=25, classical=30, output=33),
        result("noise-15", "b", input=25, classical=32, output=35),
        result("noise-50", "a", input=15, classical=25, output=24),
        result("haze", "a", input=10, output=20),  # no classical method ran
    ]
    assert compare_with_classical(results) == {"noise": (pytest.approx(28), pytest.approx(29))}
