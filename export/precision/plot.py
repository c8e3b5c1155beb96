"""Plot of value ranges and errors along the pipeline, for report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.precision.ranges import LARGEST, NORMAL, SUBNORMAL
from export.precision.record import EXACT

__all__ = ["PLOT", "draw"]

PLOT = "report/precision.png"
"""Path of the plot in the bundle."""
COLORS = {"mfm": "#8a63b8", "encoder": "#2f7fbf", "unet": "#c9772b", "decoder": "#3f9a5a"}
"""Color of each component."""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw the plot. Each intermediate result is one position on the horizontal axis, in the order of the pipeline.

    Args:
        record: The record of `export.precision.record.calibrate`.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    rows = [row for row in record["operations"] if row["largest"] > 0]
    x = np.arange(len(rows))
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for component, first, last in _spans(rows):
        for axes in (top, bottom):
            axes.axvspan(first - 0.5, last + 0.5, color=COLORS[component], alpha=0.09, linewidth=0)
        top.text((first + last) / 2, 1.01, component, transform=top.get_xaxis_transform(), ha="center",
                 color=COLORS[component], fontweight="bold", fontsize=12)  # fmt: skip
    largest, rms = (np.array([row[key] for row in rows]) for key in ("largest", "rms"))
    top.vlines(x, np.maximum(rms, 1e-9), largest, color="#b9c2cc", linewidth=0.6)
    top.plot(x, largest, ".", color="#26323f", markersize=3.5, label="largest value")
    top.plot(x[rms > 0], rms[rms > 0], ".", color="#6f9bd1", markersize=2.5, label="root mean square")
    beyond = np.array([row["fp16"] for row in rows], bool) & (largest > LARGEST / record["safety"])
    if beyond.any():
        top.plot(x[beyond], largest[beyond], "o", color="#c8102e", markersize=6, label="beyond the safe range")
    lines = ((LARGEST, "65,504: overflow", "#c8102e", "-"), (LARGEST / record["safety"], "", "#c8102e", ":"),
             (NORMAL, "2$^{-14}$: fewer bits below", "#7a5c00", "-"),
             (SUBNORMAL / 2, "2$^{-25}$: 0 below", "#7a5c00", ":"))  # fmt: skip
    for value, text, color, style in lines:
        top.axhline(value, color=color, linewidth=1.1, linestyle=style)
        top.text(1.002, value, text, transform=top.get_yaxis_transform(), color=color, fontsize=9, va="center")
    top.set_yscale("log", base=10)
    top.set_ylim(1e-8, max(4 * LARGEST, 3 * float(largest.max())))
    top.set_ylabel("magnitude in fp32")
    top.legend(loc="lower left", ncols=3, frameon=True, fontsize=9)
    top.set_title(f"{len(record['images'])} photographs, {len(rows)} results in the order of the pipeline", loc="left",
                  fontsize=10, pad=22)  # fmt: skip
    curves = [("snr_fp16_db", "fp16 without fp32 modules", "#26323f")]
    if record["fp32_modules"]:
        curves.append(("snr_chosen_db", f"fp16 with {len(record['fp32_modules'])} fp32 modules", "#c8102e"))
    for key, label, color in curves:
        values = np.array([np.nan if row[key] is None or row[key] >= EXACT else row[key] for row in rows], float)
        bottom.plot(x, values, ".", color=color, markersize=2.5, label=label)
    for position in (i for i, row in enumerate(rows) if row["in_fp32_module"]):
        bottom.axvspan(position - 0.5, position + 0.5, ymax=0.03, color="#c8102e", linewidth=0)
    restored = max((i for i, row in enumerate(rows) if row["name"].startswith("unet ")), default=None)
    if restored is not None and rows[restored]["snr_fp16_db"] is not None:
        bottom.annotate(f"z0: {rows[restored]['snr_fp16_db']:.1f} dB", (restored, rows[restored]["snr_fp16_db"]),
                        xytext=(-18, -4), textcoords="offset points", ha="right", fontsize=9,
                        arrowprops={"arrowstyle": "->"})  # fmt: skip
    bottom.set_ylim(0, 100)
    bottom.set_ylabel(f"SNR of fp16 against fp32, dB\n({record['shown']})")
    bottom.set_xlabel("result along the pipeline")
    bottom.legend(loc="upper right", frameon=True, fontsize=9, markerscale=4)
    bottom.set_xlim(-0.5, len(rows) - 0.5)
    for axes in (top, bottom):
        axes.grid(axis="y", color="#d9dee4", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, format="png")


def _spans(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return (component, first position, last position), in the order of the pipeline."""
    positions: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        positions.setdefault(row["component"], []).append(i)
    return [(component, found[0], found[-1]) for component, found in positions.items()]
