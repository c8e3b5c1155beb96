"""Which prototype a condition lies nearest to: the confusion table here, and the rule of the path `routed`.

In numpy and float64, so that what has no torch can be tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

__all__ = ["cosine_distances", "nearest", "standardise"]

Array = NDArray[np.float64]


def standardise(conditions: ArrayLike, statistics: ArrayLike) -> Array:
    """(c - mean) / deviation, feature by feature; 0 for a feature whose deviation is 0, which tells nothing apart.

    conditions: [..., C]; statistics: [2, C], mean and deviation. Raises DataError for other shapes and for values that
    are not finite.

    >>> standardise([[3.0, 5.0]], [[1.0, 5.0], [4.0, 0.0]])
    array([[0.5, 0. ]])
    """
    c, s = np.asarray(conditions, np.float64), np.asarray(statistics, np.float64)
    if s.ndim != 2 or s.shape[0] != 2 or c.ndim < 1 or c.shape[-1] != s.shape[1]:
        raise DataError(f"statistics must be [2, C] and conditions [..., C], not {list(s.shape)} and {list(c.shape)}")
    if not (np.isfinite(c).all() and np.isfinite(s).all()):
        raise DataError("a condition or the statistics hold values that are not finite: the weights are broken")
    mean, deviation = s
    return np.divide(c - mean, deviation, out=np.zeros_like(c), where=deviation > 0)


def cosine_distances(conditions: ArrayLike, prototypes: ArrayLike, statistics: ArrayLike) -> Array:
    """1 - cosine of every condition [N, C] and every prototype [M, C], both standardised: [N, M], 0 to 2.

    A vector without a direction (all zero) has distance 1 to everything. Raises DataError as `standardise` does.

    >>> cosine_distances([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]])
    array([[0., 1., 2.]])
    """
    return 1 - np.clip(_directions(conditions, statistics) @ _directions(prototypes, statistics).T, -1, 1)


def nearest(
    conditions: ArrayLike, prototypes: Mapping[str, ArrayLike], statistics: ArrayLike
) -> list[tuple[str, float]]:
    """(name, distance) of each condition's nearest prototype; conditions [N, C]. Of equal ones the first named.

    Raises DataError where there is no prototype, and as `standardise` does.
    """
    if not prototypes:
        raise DataError("no prototypes to compare with: `python -m dod.training.stages calibrate` computes them")
    names = list(prototypes)
    distances = cosine_distances(conditions, np.stack([np.asarray(prototypes[name]) for name in names]), statistics)
    return [(names[k], float(row[k])) for row, k in zip(distances, distances.argmin(axis=1), strict=True)]


def _directions(vectors: ArrayLike, statistics: ArrayLike) -> Array:
    standardised = standardise(vectors, statistics)
    length = np.linalg.norm(standardised, axis=-1, keepdims=True)
    return np.divide(standardised, length, out=np.zeros_like(standardised), where=length > 0)
