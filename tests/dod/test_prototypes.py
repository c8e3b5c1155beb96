"""Nearest prototype by standardised cosine distance, compared with loops in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from dod.errors import DataError
from dod.prototypes import cosine_distances, nearest, standardise, statistics_of


def by_hand(c: np.ndarray, p: np.ndarray, statistics: np.ndarray) -> float:
    """Return 1 - cosine in the inner product a' T^-1 b, which equals whitening by T^(-1/2), without a root of T."""
    covariance = statistics[1:]
    total = covariance + 1e-3 * covariance.trace() / len(covariance) * np.eye(len(covariance))
    a, b = c - statistics[0], p - statistics[0]
    inner = [float(x @ np.linalg.solve(total, y)) for x, y in ((a, b), (a, a), (b, b))]
    return 1 - inner[0] / math.sqrt(inner[1] * inner[2])


@given(seed=st.integers(0, 10_000))
def test_distances_are_those_computed_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    conditions, prototypes = rng.normal(3, 2, (4, 6)).astype(np.float32), rng.normal(3, 2, (3, 6)).astype(np.float32)
    statistics = statistics_of(rng.normal(3, 1, (9, 6)) @ rng.normal(0, 1, (6, 6)))
    found = cosine_distances(conditions, prototypes, statistics)
    expected = [[by_hand(c, p, statistics) for p in prototypes] for c in conditions]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    names = dict(zip("abc", prototypes, strict=True))
    assert [name for name, _ in nearest(conditions, names, statistics)] == ["abc"[int(np.argmin(e))] for e in expected]
    assert [d for _, d in nearest(conditions, names, statistics)] == pytest.approx([min(e) for e in expected])


def test_a_calibration_set_becomes_uncorrelated() -> None:
    rng = np.random.default_rng(1)
    conditions = rng.normal(5, 1, (500, 4)) @ rng.normal(0, 3, (4, 4))
    white = standardise(conditions, statistics_of(conditions))
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(4), atol=0.06)


def test_content_of_photographs_does_not_decide() -> None:
    """The first two features vary together, far more than the third, which alone distinguishes the degradations."""
    rng = np.random.default_rng(2)
    scene = rng.normal(0, 10, (200, 1)) * [1.0, 1.0, 0.0]
    degradation = np.arange(200)[:, None] % 2 * [0.0, 0.0, 1.0]
    conditions = scene + degradation + rng.normal(0, 0.1, (200, 3))
    prototypes = {"rain": conditions[::2].mean(0), "haze": conditions[1::2].mean(0)}
    named = nearest(conditions, prototypes, statistics_of(conditions))
    assert np.mean([name == ("rain", "haze")[i % 2] for i, (name, _) in enumerate(named)]) > 0.95


def test_a_vector_without_direction_is_far_from_all() -> None:
    statistics = [[2.0, 3.0], [1.0, 0.0], [0.0, 1.0]]
    assert cosine_distances([[2.0, 3.0]], [[5.0, 1.0], [2.0, 3.0]], statistics).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("conditions", "statistics", "words"),
    [
        ([[1.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]], r"not \[2, 2\] and \[1, 2\]"),
        ([[1.0]], np.zeros((3, 2)), r"\[1 \+ C, C\].*\[3, 2\]"),
        ([[1.0, math.nan]], np.zeros((3, 2)), "not finite"),
        ([[1.0, 2.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, math.inf]], "not finite"),
    ],
)
def test_bad_values(conditions: list[list[float]], statistics: ArrayLike, words: str) -> None:
    with pytest.raises(DataError, match=words):
        standardise(conditions, statistics)


def test_no_prototypes() -> None:
    with pytest.raises(DataError, match="dod-train calibrate"):
        nearest([[1.0]], {}, [[0.0], [1.0]])
