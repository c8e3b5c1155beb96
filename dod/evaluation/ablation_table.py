"""Rows and variants of the paper's ablations (Tables 4, 5 and 6), and the tables of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dod_runtime.console import table

from .metrics import Metric

__all__ = ["PLAIN", "ROWS", "AblationRow", "AblationVariant", "Results", "Values", "as_markdown"]


@dataclass(frozen=True)
class AblationVariant:
    """A model that is trained: both stages.

    Attributes:
        conditional: networks whose LoRA is conditional: "none", "unet" or "unet+encoder".
        rank: rank of the LoRA.
        narrow: width of the decoder divided by that of the detail modules.
    """

    conditional: str
    rank: int
    narrow: int = 1


@dataclass(frozen=True)
class AblationRow:
    """A row of a table.

    Attributes:
        table: title of the table.
        name: name of the row.
        variant: the model.
        detail: the model is measured with its detail modules.
        paper: PSNR in dB in the paper, or a word where it has none.
    """

    table: str
    name: str
    variant: AblationVariant
    detail: bool
    paper: float | str


FULL, PLAIN = AblationVariant("unet", 8), AblationVariant("none", 8)
ROWS = (
    AblationRow("Table 4", "neither CLoRA nor DEM", PLAIN, False, 23.05),
    AblationRow("Table 4", "CLoRA", FULL, False, 24.60),
    AblationRow("Table 4", "DEM", PLAIN, True, 31.83),
    AblationRow("Table 4", "CLoRA and DEM", FULL, True, 31.87),
    AblationRow("Table 5", "CLoRA in encoder and UNet", AblationVariant("unet+encoder", 8), True, 30.68),
    AblationRow("Table 5", "CLoRA in the UNet only", FULL, True, 31.87),
    AblationRow("Table 6", "rank 4", AblationVariant("unet", 4), True, "collapses"),
    AblationRow("Table 6", "rank 8", FULL, True, 31.87),
    AblationRow("Table 6", "rank 16", AblationVariant("unet", 16), True, 31.68),
    AblationRow("Detail modules", "as wide as the decoder", FULL, True, 31.87),
    AblationRow("Detail modules", "half as wide", AblationVariant("unet", 8, 2), True, "not tried"),
)
"""Rows of all tables."""

Values = Mapping[str, float]
"""Results by metric."""
Results = Mapping[AblationVariant, Mapping[bool, Values]]
"""Results of each variant, without (False) and with (True) detail modules."""


def as_markdown(results: Results, metrics: Sequence[Metric]) -> str:
    """Format the tables: PSNR and other metrics, PSNR in the paper, and differences to the first row of each table.

    Args:
        results: results by variant.
        metrics: metrics in addition to PSNR.

    Returns:
        Markdown.
    """
    parts = []
    for title in dict.fromkeys(row.table for row in ROWS):
        rows = [row for row in ROWS if row.table == title and row.variant in results]
        cells: list[list[Any]] = []
        for row in rows:
            measured, first = (results[each.variant][each.detail] for each in (row, rows[0]))
            difference = f"{measured['psnr'] - first['psnr']:+.2f}"
            paper, base = row.paper, rows[0].paper
            paper_difference = f"{paper - base:+.2f}" if isinstance(paper, float) and isinstance(base, float) else "-"
            listed = f"{paper:.2f}" if isinstance(paper, float) else paper
            others = [f"{measured[metric.name]:.{metric.digits}f}" for metric in metrics]
            cells.append([row.name, f"{measured['psnr']:.2f}", difference, *others, listed, paper_difference])
        labels = [metric.label for metric in metrics]
        headers = [title, "PSNR dB", "difference to line 1", *labels, "PSNR dB (paper)", "difference to line 1 (paper)"]
        parts.append(table(headers, cells, "l" + "r" * (len(headers) - 1), markdown=True))
    return "\n\n".join(parts)
