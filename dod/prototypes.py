"""Which prototype a condition lies nearest to, for the confusion table.

In numpy and float64, so that what has no torch can be tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

__all__ = ["cosine_distances", "nearest", "standardise", "statistics_of"]

Array = NDArray[np.float64]
RIDGE = 1e-3
"""What is added to every variance, as a share of their mean."""


def statistics_of(conditions: ArrayLike) -> Array:
    """Mean and covariance of conditions [N, C], as a checkpoint keeps them: [1 + C, C], the mean first."""
    c = np.asarray(conditions, np.float64)
    return np.vstack([c.mean(axis=0), np.cov(c, rowvar=False, bias=True).reshape(c.shape[1], c.shape[1])])


def standardise(conditions: ArrayLike, statistics: ArrayLike) -> Array:
    """(c - mean) S^(-1/2): every direction of c with deviation 1 over what S was taken of, and uncorrelated.

    Feature by feature would leave what photographs differ in, which most features share, to outweigh what degradations
    differ in. S is the covariance, with a thousandth of its mean variance added to each feature, for directions in
    which a small calibration set does not vary. conditions: [..., C]; statistics: [1 + C, C], as `statistics_of` gives
    them. Raises DataError for other shapes and for values that are not finite.

    >>> standardise([[3.0, 5.0]], [[1.0, 5.0], [4.0, 0.0], [0.0, 0.0]]).round(2)
    array([[1., 0.]])
    """
    c, s = np.asarray(conditions, np.float64), np.asarray(statistics, np.float64)
    if s.ndim != 2 or s.shape[0] != 1 + s.shape[1] or c.ndim < 1 or c.shape[-1] != s.shape[1]:
        raise DataError(
            f"statistics must be [1 + C, C] and conditions [..., C], not {list(s.shape)} and {list(c.shape)}: "
            "`python -m dod.training.stages calibrate` computes them"
        )
    if not (np.isfinite(c).all() and np.isfinite(s).all()):
        raise DataError("a condition or the statistics hold values that are not finite: the weights are broken")
    mean, covariance = s[0], s[1:]
    variances, axes = np.linalg.eigh(covariance)
    variances = np.clip(variances, 0, None) + RIDGE * max(np.trace(covariance) / len(mean), 0)
    scale = np.divide(1, np.sqrt(variances), out=np.zeros_like(variances), where=variances > 0)
    return (c - mean) @ (axes * scale) @ axes.T


def cosine_distances(conditions: ArrayLike, prototypes: ArrayLike, statistics: ArrayLike) -> Array:
    """1 - cosine of every condition [N, C] and every prototype [M, C], both standardised: [N, M], 0 to 2.

    A vector without a direction (all zero) has distance 1 to everything. Raises DataError as `standardise` does.

    >>> unit = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    >>> cosine_distances([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], unit)
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
