"""Degradation cases of the quality benchmark."""

from __future__ import annotations

import hashlib

import numpy as np

from benchmarks.degradation_cases import CASES, degrade_photograph
from dod.data.degradations import DEGRADATIONS, degrade, rng_for

TRUTH = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_every_degradation_has_a_case() -> None:
    assert {case.degradation for case in CASES} == {None, *DEGRADATIONS}


def test_name_and_seed_determine_the_image() -> None:
    for case in CASES:
        first, parameters = degrade_photograph(case, "a", TRUTH, 0)
        again, recorded = degrade_photograph(case, "a", TRUTH, 0)
        np.testing.assert_array_equal(first, again)
        assert parameters == recorded and first.dtype == np.uint8 and first.shape == TRUTH.shape
        other, _ = degrade_photograph(case, "a", TRUTH, 1)
        assert np.array_equal(first, other) == (case.degradation is None), case.name


def test_parameters_are_those_of_the_degradation() -> None:
    (haze,) = [case for case in CASES if case.name == "haze"]
    degraded, recorded = degrade_photograph(haze, "a", TRUTH, 3)
    expected, parameters = degrade(TRUTH.astype(np.float32) / np.float32(255), "haze", rng_for("a", "haze", 3))
    np.testing.assert_array_equal(degraded, np.rint(expected * 255).astype(np.uint8))
    assert recorded["beta"] == parameters["beta"]
    depth = hashlib.sha256(parameters["depth"].tobytes()).hexdigest()
    assert recorded["depth"] == {"shape": [48, 64], "sha256": depth}
    (noise,) = [case for case in CASES if case.name == "noise-25"]
    assert degrade_photograph(noise, "a", TRUTH, 0)[1]["sigma"] == 25
