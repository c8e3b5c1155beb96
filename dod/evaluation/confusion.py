"""Confusion table of nearest prototypes: degradations of images, and the prototypes they are assigned to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dod_runtime.console import table

__all__ = ["Classification", "Confusion", "as_json", "base_degradation", "confusion", "report"]


@dataclass(frozen=True)
class Classification:
    """Nearest prototype of an image.

    Attributes:
        image: name of the image.
        degradation: its degradation, possibly with a level (`noise=25`).
        nearest: name of the nearest prototype.
        distance: cosine distance to it, 0 to 2.
    """

    image: str
    degradation: str
    nearest: str
    distance: float


@dataclass(frozen=True)
class Confusion:
    """Confusion table.

    Attributes:
        rows: degradations of the images.
        columns: names of the prototypes.
        counts: counts[i][j] is the number of images of rows[i] whose nearest prototype is columns[j].
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def accuracy(self, row: str | None = None) -> float | None:
        """Return the fraction of images that are assigned to the right prototype.

        Rows without a prototype do not count.

        Args:
            row: name of a row; by default all rows.

        Returns:
            Fraction in 0 to 1, or None if no row counts.

        Example:
            >>> table = Confusion(("rain", "noise=25", "snow"), ("rain", "noise"), ((3, 1), (0, 4), (2, 2)))
            >>> table.accuracy("rain"), table.accuracy("snow"), table.accuracy()
            (0.75, None, 0.875)
        """
        counted = [
            (counts[self.columns.index(base_degradation(name))], sum(counts))
            for name, counts in zip(self.rows, self.counts, strict=True)
            if row in (None, name) and base_degradation(name) in self.columns
        ]
        total = sum(images for _, images in counted)
        return sum(right for right, _ in counted) / total if total else None

    @property
    def without_prototype(self) -> tuple[str, ...]:
        """Rows whose degradation has no prototype."""
        return tuple(row for row in self.rows if base_degradation(row) not in self.columns)


def base_degradation(degradation: str) -> str:
    """Return a degradation without its level.

    Args:
        degradation: degradation, possibly with a level.

    Returns:
        The name.

    Example:
        >>> base_degradation("noise=25")
        'noise'
    """
    return degradation.partition("=")[0]


def confusion(found: Sequence[Classification], columns: Sequence[str]) -> Confusion:
    """Count images by degradation and nearest prototype.

    Args:
        found: classified images.
        columns: names of the prototypes.

    Returns:
        The table; rows are in the order of their first image.
    """
    rows = tuple(dict.fromkeys(each.degradation for each in found))
    counts = [
        [sum((each.degradation, each.nearest) == (row, column) for each in found) for column in columns] for row in rows
    ]
    return Confusion(rows, tuple(columns), tuple(map(tuple, counts)))


def report(found: Confusion) -> str:
    """Format a confusion table as text, with the accuracy of each row and of all images.

    Args:
        found: the table.

    Returns:
        The text.
    """
    lines = [
        [row, *counts, _percent(found.accuracy(row))] for row, counts in zip(found.rows, found.counts, strict=True)
    ]
    total = [sum(column) for column in zip(*found.counts, strict=True)]
    headers = ["degradation \\ nearest", *found.columns, "correct"]
    align = "l" + "r" * (len(headers) - 1)
    return table(headers, [*lines, ["all", *total, _percent(found.accuracy())]], align)


def as_json(found: Sequence[Classification], result: Confusion, **settings: Any) -> dict[str, Any]:
    """Return settings, table, accuracies in 0 to 1 (null without a prototype) and images as JSON values.

    Args:
        found: classified images.
        result: their confusion table.
        **settings: settings that determine the images.

    Returns:
        JSON values.
    """
    accuracy = {row: result.accuracy(row) for row in result.rows}
    return {
        "settings": settings,
        **asdict(result),
        "accuracy": accuracy,
        "overall": result.accuracy(),
        "images": [asdict(each) for each in found],
    }


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
