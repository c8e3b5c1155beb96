"""Nearest prototype by standardised cosine distance, against loops in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dod.errors import DataError
from dod.prototypes import cosine_distances, nearest, standardise


def by_hand(c: np.ndarray, p: np.ndarray, statistics: np.ndarray) -> float:
    """Cosine distance of two vectors, number by number; a feature that never varies is left out."""
    mean, deviation = statistics.tolist()
    kept = [i for i in range(len(mean)) if deviation[i] > 0]
    a = [(float(c[i]) - mean[i]) / deviation[i] for i in kept]
    b = [(float(p[i]) - mean[i]) / deviation[i] for i in kept]
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@given(seed=st.integers(0, 10_000))
def test_distances_are_those_computed_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    conditions, prototypes = rng.normal(3, 2, (4, 6)).astype(np.float32), rng.normal(3, 2, (3, 6)).astype(np.float32)
    statistics = np.stack([rng.normal(3, 1, 6), rng.uniform(0.1, 9, 6)])
    statistics[1, 2] = 0
    found = cosine_distances(conditions, prototypes, statistics)
    expected = [[by_hand(c, p, statistics) for p in prototypes] for c in conditions]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    names = dict(zip("abc", prototypes, strict=True))
    assert [name for name, _ in nearest(conditions, names, statistics)] == ["abc"[int(np.argmin(e))] for e in expected]
    assert [d for _, d in nearest(conditions, names, statistics)] == pytest.approx([min(e) for e in expected])


def test_standardising_decides() -> None:
    """By its deviation the second feature, raw the larger, weighs less than the first."""
    prototypes = {"rain": [1.0, 0.0], "haze": [0.0, 1.0]}
    assert nearest([[1.0, 2.0]], prototypes, [[0, 0], [1, 1]])[0][0] == "haze"
    assert nearest([[1.0, 2.0]], prototypes, [[0, 0], [1, 4]])[0][0] == "rain"


def test_a_vector_without_direction_is_far_from_all() -> None:
    mean = [[2.0, 3.0], [1.0, 1.0]]
    assert cosine_distances([[2.0, 3.0]], [[5.0, 1.0], [2.0, 3.0]], mean).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("conditions", "statistics", "words"),
    [
        ([[1.0, 2.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], r"not \[2, 3\] and \[1, 2\]"),
        ([[1.0, 2.0]], [[0.0, 0.0]], r"statistics must be \[2, C\]"),
        ([[1.0, math.nan]], [[0.0, 0.0], [1.0, 1.0]], "not finite"),
        ([[1.0, 2.0]], [[0.0, 0.0], [1.0, math.inf]], "not finite"),
    ],
)
def test_bad_values(conditions: list[list[float]], statistics: list[list[float]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        standardise(conditions, statistics)


def test_no_prototypes() -> None:
    with pytest.raises(DataError, match="no prototypes"):
        nearest([[1.0]], {}, [[0.0], [1.0]])
