"""The confusion table of nearest prototypes: which degradation images have, and which they are taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .scores import table

__all__ = ["Confusion", "Named", "as_json", "confusion", "family", "report"]


@dataclass(frozen=True)
class Named:
    """An image's nearest prototype. label: its row, a degradation perhaps with a level; distance: cosine, 0 to 2."""

    image: str
    label: str
    nearest: str
    distance: float


@dataclass(frozen=True)
class Confusion:
    """counts[i][j]: how many images of rows[i] are nearest to the prototype columns[j]."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def accuracy(self, row: str | None = None) -> float | None:
        """The share of images, of one row or of all, that are named rightly; rows without a prototype of their own
        do not count, and where none is left it is None.

        >>> table = Confusion(("rain", "noise=25", "snow"), ("rain", "noise"), ((3, 1), (0, 4), (2, 2)))
        >>> table.accuracy("rain"), table.accuracy("snow"), table.accuracy()
        (0.75, None, 0.875)
        """
        counted = [
            (counts[self.columns.index(family(name))], sum(counts))
            for name, counts in zip(self.rows, self.counts, strict=True)
            if row in (None, name) and family(name) in self.columns
        ]
        total = sum(images for _, images in counted)
        return sum(right for right, _ in counted) / total if total else None

    @property
    def strangers(self) -> tuple[str, ...]:
        """The rows that no prototype stands for."""
        return tuple(row for row in self.rows if family(row) not in self.columns)


def family(label: str) -> str:
    """The degradation of a label, which may give a level: `noise` of `noise=25`."""
    return label.partition("=")[0]


def confusion(found: Sequence[Named], columns: Sequence[str]) -> Confusion:
    """The table of all images; rows in the order in which they first occur."""
    rows = tuple(dict.fromkeys(each.label for each in found))
    counts = [
        [sum((each.label, each.nearest) == (row, column) for each in found) for column in columns] for row in rows
    ]
    return Confusion(rows, tuple(columns), tuple(map(tuple, counts)))


def report(found: Confusion) -> str:
    """The table as text, with the accuracy of each row, and a last line of all images."""
    lines = [
        [row, *counts, _percent(found.accuracy(row))] for row, counts in zip(found.rows, found.counts, strict=True)
    ]
    total = [sum(column) for column in zip(*found.counts, strict=True)]
    return table(["is \\ nearest", *found.columns, "right"], [*lines, ["all", *total, _percent(found.accuracy())]])


def as_json(found: Sequence[Named], result: Confusion, **settings: Any) -> dict[str, Any]:
    """JSON values: the settings, the table, its accuracies in 0 to 1 (null where no prototype is right), each image.

    settings: how the images came about.
    """
    accuracy = {row: result.accuracy(row) for row in result.rows}
    return {
        "settings": settings,
        **asdict(result),
        "accuracy": accuracy,
        "overall": result.accuracy(),
        "images": [asdict(each) for each in found],
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
