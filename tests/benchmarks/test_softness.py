"""`benchmarks/softness.py` on a toy bundle: its degradations, means and table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.softness import (
    CAPTURES,
    KERNELS,
    SoftnessCase,
    SoftnessResult,
    degrade_and_soften,
    main,
    softness_cases,
    summarize,
)
from dod.data.capture import SHARP, Capture
from dod.data.degradations import degrade, rng_for
from dod.evaluation.metrics import psnr
from tests.benchmarks.commands import refused, run_here


def scene() -> np.ndarray:
    y, x = np.mgrid[:96, :120]
    waves = [127 + 90 * np.sin(x / 2 + i) * np.cos(y / 3) for i in range(3)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def test_a_sharp_case_is_the_plain_degradation() -> None:
    clean = scene()
    degraded, reference = degrade_and_soften(SoftnessCase("rain", "sharp", SHARP, {}), "scene", clean, 3)
    expected = degrade(clean.astype(np.float32) / np.float32(255), "rain", rng_for("scene", "rain", 3))[0]
    np.testing.assert_array_equal(degraded, np.rint(expected * 255).astype(np.uint8))
    np.testing.assert_array_equal(reference, clean)


@pytest.mark.parametrize("name", ["haze", "rain", "noise", None])
def test_the_reference_is_soft_without_noise_and_jpeg(name: str | None) -> None:
    clean = scene()
    degraded, reference = degrade_and_soften(SoftnessCase(name, "", Capture(blur=2.0), {}), "scene", clean, 0)
    detail, softer = (np.abs(np.diff(each.astype(int), axis=1)).mean() for each in (clean, reference))
    assert softer < 0.5 * detail
    if name is None:
        np.testing.assert_array_equal(degraded, reference)
    compressed, whole = degrade_and_soften(SoftnessCase(name, "", Capture(quality=60), {}), "scene", clean, 0)
    np.testing.assert_array_equal(whole, clean)
    assert psnr(compressed, whole) < 60
    larger, _ = degrade_and_soften(SoftnessCase(name, "", Capture(scale=2.0), {}), "scene", clean, 0)
    assert larger.shape == (96, 96, 3), "the middle of the image, so that the result has about its size"


def test_blur_is_applied_to_the_reference_with_noise_of_one_level() -> None:
    case = next(each for each in softness_cases() if each.degradation == "blur")
    flat = np.full((64, 64, 3), 100, np.uint8)
    degraded, reference = degrade_and_soften(case, "flat", flat, 0)
    assert np.array_equal(reference, flat) and (degraded.astype(float) - 100).std() == pytest.approx(1.05, rel=0.15)
    assert len([each for each in softness_cases() if each.degradation == "blur"]) == len(KERNELS)


def test_kept_gain_is_a_percentage_of_the_sharp_gain() -> None:
    def one(softness: str, path: str, after: float) -> SoftnessResult:
        return SoftnessResult("a", "haze", softness, path, 10.0, after, 0.25)

    rows = summarize([one("sharp", "named", 18), one("sharp", "auto", 20), one("blur 2 px", "named", 16)])
    by = {(row["degradation"], row["softness"]): row for row in rows if "before" in row}
    assert by["haze", "sharp"]["named_kept"] == 100 and by["haze", "blur 2 px"]["named_kept"] == 75
    assert by["haze", "blur 2 px"]["auto_kept"] is None


def test_the_command_prints_a_row_for_each_case(identity: Path, tmp_path: Path) -> None:
    written = tmp_path / "build" / "softness.json"
    done = run_here(main, "--bundle", identity, "--size", 64, "--limit", 1, "--out", written)
    assert done.returncode == 0, done.stderr
    for softness in CAPTURES:
        assert done.stdout.count(softness) >= 5, softness
    data = json.loads(written.read_text())
    assert len(data["summary"]) == len(softness_cases()) and data["size"] == 64
    haze = next(row for row in data["summary"] if row["degradation"] == "haze")
    assert haze["named_gain"] == pytest.approx(0, abs=1e-6), "the bundle changes nothing"
    refused(run_here(main, "--size", 8, "--bundle", identity), "--size", "64", "8")
