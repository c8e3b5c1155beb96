"""Nearest prototype of a condition, by cosine distance after standardization. In numpy and float64, without torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

__all__ = ["cosine_distances", "nearest", "standardise", "statistics_of"]

Array = NDArray[np.float64]
RIDGE = 1e-3
"""Addend of each variance, as a share of the mean variance."""


def statistics_of(conditions: ArrayLike) -> Array:
    """Return mean and covariance of conditions, as a checkpoint stores them.

    Args:
        conditions: conditions c, [N, C].

    Returns:
        The mean in the first row and the covariance below it, [1 + C, C].
    """
    c = np.asarray(conditions, np.float64)
    return np.vstack([c.mean(axis=0), np.cov(c, rowvar=False, bias=True).reshape(c.shape[1], c.shape[1])])


def standardise(conditions: ArrayLike, statistics: ArrayLike) -> Array:
    """Whiten conditions: (c - mean) S^(-1/2), with standard deviation 1 in each direction over the calibration set.

    Scaling feature by feature would not suffice: the content of the photographs, which moves most features together,
    would outweigh the degradations. S is the covariance plus a thousandth of the mean variance on its diagonal, for
    directions in which a small calibration set does not vary.

    Args:
        conditions: conditions c, [..., C].
        statistics: mean and covariance, [1 + C, C], see `statistics_of`.

    Returns:
        The whitened conditions, [..., C].

    Raises:
        DataError: a shape is wrong, or a value is not finite.

    Example:
        >>> standardise([[3.0, 5.0]], [[1.0, 5.0], [4.0, 0.0], [0.0, 0.0]]).round(2)
        array([[1., 0.]])
    """
    c, s = np.asarray(conditions, np.float64), np.asarray(statistics, np.float64)
    if s.ndim != 2 or s.shape[0] != 1 + s.shape[1] or c.ndim < 1 or c.shape[-1] != s.shape[1]:
        raise DataError(
            f"statistics must be [1 + C, C] and conditions [..., C], not {list(s.shape)} and {list(c.shape)}: "
            "run `dod-train calibrate`"
        )
    if not (np.isfinite(c).all() and np.isfinite(s).all()):
        raise DataError(
            "a condition or the statistics have values that are not finite: train or download the weights again"
        )
    mean, covariance = s[0], s[1:]
    variances, axes = np.linalg.eigh(covariance)
    variances = np.clip(variances, 0, None) + RIDGE * max(np.trace(covariance) / len(mean), 0)
    scale = np.divide(1, np.sqrt(variances), out=np.zeros_like(variances), where=variances > 0)
    return (c - mean) @ (axes * scale) @ axes.T


def cosine_distances(conditions: ArrayLike, prototypes: ArrayLike, statistics: ArrayLike) -> Array:
    """Return 1 - cosine of each condition and each prototype, both standardized.

    Args:
        conditions: conditions c, [N, C].
        prototypes: prototypes, [M, C].
        statistics: mean and covariance, [1 + C, C], see `statistics_of`.

    Returns:
        Distances in 0 to 2, [N, M]. A zero vector has distance 1 to all others.

    Raises:
        DataError: a shape is wrong, or a value is not finite.

    Example:
        >>> unit = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> cosine_distances([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], unit)
        array([[0., 1., 2.]])
    """
    return 1 - np.clip(_directions(conditions, statistics) @ _directions(prototypes, statistics).T, -1, 1)


def nearest(
    conditions: ArrayLike, prototypes: Mapping[str, ArrayLike], statistics: ArrayLike
) -> list[tuple[str, float]]:
    """Return the nearest prototype of each condition.

    Args:
        conditions: conditions c, [N, C].
        prototypes: prototypes by name, [C] each. The first wins a tie.
        statistics: mean and covariance, [1 + C, C], see `statistics_of`.

    Returns:
        Name and distance, for each condition.

    Raises:
        DataError: there is no prototype, a shape is wrong, or a value is not finite.
    """
    if not prototypes:
        raise DataError("no prototypes: run `dod-train calibrate`")
    names = list(prototypes)
    distances = cosine_distances(conditions, np.stack([np.asarray(prototypes[name]) for name in names]), statistics)
    return [(names[k], float(row[k])) for row, k in zip(distances, distances.argmin(axis=1), strict=True)]


def _directions(vectors: ArrayLike, statistics: ArrayLike) -> Array:
    standardised = standardise(vectors, statistics)
    length = np.linalg.norm(standardised, axis=-1, keepdims=True)
    return np.divide(standardised, length, out=np.zeros_like(standardised), where=length > 0)
