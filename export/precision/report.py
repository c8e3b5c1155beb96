"""The precision step as a reader sees it: text and tables for report.md, and a plot of ranges and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dod_runtime.console import table
from export.graphs.fp16 import COMPONENTS
from export.precision.ranges import ERROR_SAMPLES, LARGEST, NORMAL, SHARE_SAMPLES, SIDE, SUBNORMAL
from export.precision.record import EXACT

Record = Mapping[str, Any]
PLOT = "report/precision.png"
WORST = 15
COLOURS = {"mfm": "#8a63b8", "encoder": "#2f7fbf", "unet": "#c9772b", "decoder": "#3f9a5a"}


def section(record: Record, plot: str) -> list[str]:
    """The paragraphs of report.md under "Precision". plot: the path of the image beside the report."""
    sums = "keep their sums in float32" if record["sums_in_float32"] else "round their partial sums"
    threshold, count = record["threshold_db"], len(record["images"])
    return [
        "## Precision",
        f"Float32 ranges and true half arithmetic on the middle {SIDE} px of {count} photographs, path `auto`. The "
        f"image decides: a PSNR of at least {threshold:g} dB, and of {threshold + record['margin_db']:g} dB where "
        f"fp32 modules are searched. z0 is shown beside it: an error in eps is {record['eps_gain']:g} times as large there.",
        *_degraded(record),
        "**Witness**: PyTorch on CPU. The largest values are over all of float32's results; shares and mean squares "
        f"are over at most {SHARE_SAMPLES:,} fixed places of each, errors over {ERROR_SAMPLES:,}. Half is true: each "
        f"result is rounded to float16. Convolutions and matrix products {sums} on the machine that built this "
        "(measured, with sums that pass 65,504 and return), which a GPU may not: a range is therefore cured from "
        f"65,504 / {record['safety']:g} on. The scores inside an attention are not rounded by PyTorch's fused kernel: "
        "their range alone bears witness. ONNX Runtime on CPU computes half graphs in float32 and is no witness. "
        "No GPU was asked.",
        "### float32 islands",
        _fp32_modules(record),
        table(("set", "fp32_modules", "images", "PSNR dB", "SNR at z0 dB"), _trials(record), "lrrrr", markdown=True),
        f"![ranges and errors along the chain]({plot})",
        f"Top: the largest value of each result in float32 over all images, and its root mean square, between what "
        f"float16 can hold. Bottom: the error of half along the chain on `{record['shown']}`, the worst image.",
        *_costs(record),
        "### What else was asked of the gate",
        table(("precision", "PSNR dB", "SNR at z0 dB", "verdict"), _gate(record), "lrrl", markdown=True),
        "bf16: true bfloat16 arithmetic everywhere. int8: weights of two axes or more rounded to 255 levels for each "
        "output channel, arithmetic in float32. No graphs are written in either.",
        "### The layers with the least room",
        "Bits are doublings left to 65,504; below: the share of values under 2^-14, which float16 holds with fewer "
        f"bits (and under 2^-25, which become 0). The {WORST} of each component with the least headroom.",
        *(_layers(record, component) for component in COMPONENTS),
    ]


def draw(record: Record, path: Path) -> None:
    """The plot, as PNG. Each result on the way is one place on the horizontal axis, in the order of the chain."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second, and only where a report is written
    from matplotlib.figure import Figure

    rows = [row for row in record["operations"] if row["largest"] > 0]
    x = np.arange(len(rows))
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for component, first, last in _spans(rows):
        for axes in (top, bottom):
            axes.axvspan(first - 0.5, last + 0.5, color=COLOURS[component], alpha=0.09, linewidth=0)
        top.text((first + last) / 2, 1.01, component, transform=top.get_xaxis_transform(), ha="center",
                 color=COLOURS[component], fontweight="bold", fontsize=12)  # fmt: skip
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
    for value, text, colour, style in lines:
        top.axhline(value, color=colour, linewidth=1.1, linestyle=style)
        top.text(1.002, value, text, transform=top.get_yaxis_transform(), color=colour, fontsize=9, va="center")
    top.set_yscale("log", base=10)
    top.set_ylim(1e-8, max(4 * LARGEST, 3 * float(largest.max())))
    top.set_ylabel("magnitude in float32")
    top.legend(loc="lower left", ncols=3, frameon=True, fontsize=9)
    top.set_title(f"{len(record['images'])} photographs, {len(rows)} results in the order of the chain", loc="left",
                  fontsize=10, pad=22)  # fmt: skip
    curves = [("snr_none_db", "half without islands", "#26323f")]
    if record["fp32_modules"]:
        curves.append(("snr_db", f"half with {len(record['fp32_modules'])} fp32 islands", "#c8102e"))
    for key, label, colour in curves:
        values = np.array([np.nan if row[key] is None or row[key] >= EXACT else row[key] for row in rows], float)
        bottom.plot(x, values, ".", color=colour, markersize=2.5, label=label)
    for place in (i for i, row in enumerate(rows) if row["fp32_module"]):
        bottom.axvspan(place - 0.5, place + 0.5, ymax=0.03, color="#c8102e", linewidth=0)
    restored = max((i for i, row in enumerate(rows) if row["name"].startswith("unet ")), default=None)
    if restored is not None and rows[restored]["snr_none_db"] is not None:
        bottom.annotate(f"z0: {rows[restored]['snr_none_db']:.1f} dB", (restored, rows[restored]["snr_none_db"]),
                        xytext=(-18, -4), textcoords="offset points", ha="right", fontsize=9,
                        arrowprops={"arrowstyle": "->"})  # fmt: skip
    bottom.set_ylim(0, 100)
    bottom.set_ylabel(f"SNR of half against float32, dB\n({record['shown']})")
    bottom.set_xlabel("result along the chain")
    bottom.legend(loc="upper right", frameon=True, fontsize=9, markerscale=4)
    bottom.set_xlim(-0.5, len(rows) - 0.5)
    for axes in (top, bottom):
        axes.grid(axis="y", color="#d9dee4", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, format="png")


def _spans(rows: Sequence[Record]) -> list[tuple[str, int, int]]:
    """(component, first place, last place), in the order of the chain."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row["component"], []).append(i)
    return [(component, found[0], found[-1]) for component, found in places.items()]


def _degraded(record: Record) -> list[str]:
    """Say which photographs were degraded for the measurement."""
    if not record["degraded"]:
        return []
    listed = ", ".join(f"{name} ({degradation})" for name, degradation in record["degraded"].items())
    return [f"No photograph's name begins with these conditions, so photographs were degraded: {listed}."]


def _fp32_modules(record: Record) -> str:
    if not record["fp32_modules"]:
        chosen = "None was kept, as asked" if record["given"] else "None: half meets the budget without one"
        lines = [f"{chosen}."]
    else:
        rows = [(f"`{name}`", why) for name, why in record["fp32_modules"].items()]
        share = f"They hold {record['float32_share']:.1%} of the parameters."
        lines = [table(("module", "why"), rows, "ll", markdown=True), share]
    if record["uncured"]:
        names = ", ".join(f"`{name}`" for name in record["uncured"])
        lines.append(f"**Beyond the safe range of float16 and under no island: {names}.**")
    return "\n\n".join(lines)


def _trials(record: Record) -> list[tuple[object, ...]]:
    return [
        (each["what"], len(each["fp32_modules"]), each["images"], _db(each["psnr_db"]), _db(each["z0_snr_db"]))
        for each in record["trials"]
    ]


def _figures(figures: Mapping[str, Record]) -> list[tuple[object, ...]]:
    return [(name, _db(each["psnr_db"]), _db(each["z0_snr_db"])) for name, each in figures.items()]


def _costs(record: Record) -> list[str]:
    """What each component adds, where that was asked: half without islands did not meet the budget."""
    if not record["components"]:
        return []
    return [
        "### Where half costs what",
        table(("alone in half", "PSNR dB", "SNR at z0 dB"), _figures(record["components"]), "lrr", markdown=True),
        "On the image where half without islands is worst.",
    ]


def _gate(record: Record) -> list[tuple[object, ...]]:
    rows = []
    for (name, psnr, snr), each in zip(_figures(record["gate"]), record["gate"].values(), strict=True):
        spare = -1.0 if each["psnr_db"] is None else each["psnr_db"] - record["threshold_db"]
        verdict = "refused" if spare < 0 else "meets the budget" if spare >= record["margin_db"] else "meets it, barely"
        rows.append((name, psnr, snr, verdict))
    return rows


def _layers(record: Record, component: str) -> str:
    rows = [row for row in record["operations"] if row["component"] == component and row["fp16"]]
    rows = sorted(rows, key=lambda row: -row["largest"])[:WORST]
    cells = [
        (
            f"`{row['name'].removeprefix(f'{component}.')}`{' (fp32)' if row['fp32_module'] else ''}",
            f"{row['largest']:.4g}",
            f"{np.log2(LARGEST / row['largest']):.1f}" if row["largest"] else "",
            f"{row['rms']:.3g}",
            f"{row['subnormal']:.2%} ({row['flushed']:.2%})",
            _db(row["snr_none_db"]),
            _db(row["snr_db"]),
        )
        for row in rows
    ]
    headers = (component, "largest", "bits", "rms", "below", "SNR dB, no island", "SNR dB")
    return table(headers, cells, "lrrrrrr", markdown=True)


def _db(value: float | None) -> str:
    return "not finite" if value is None else "exact" if value >= EXACT else f"{value:.1f}"
