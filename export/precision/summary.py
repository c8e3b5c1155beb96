"""Text and tables of the precision step for report.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dod_runtime.console import table
from export.graphs.fp16 import COMPONENTS
from export.precision.calibration import SIDE
from export.precision.ranges import ERROR_SAMPLES, LARGEST, SHARE_SAMPLES
from export.precision.record import EXACT

__all__ = ["section"]

Row = Mapping[str, Any]
WORST = 15
"""Operations of each component that are listed."""


def section(record: Mapping[str, Any], plot: str) -> list[str]:
    """Write the paragraphs of report.md under "Precision".

    Args:
        record: The record of `export.precision.record.calibrate`.
        plot: Path of the plot, relative to the report.

    Returns:
        Paragraphs in Markdown.
    """
    sums = "keep their sums in fp32" if record["sums_in_float32"] else "round their partial sums"
    threshold, count = record["threshold_db"], len(record["images"])
    return [
        "## Precision",
        f"Value ranges in fp32, and errors in fp16 arithmetic, on the middle {SIDE} px of {count} photographs, on the "
        f"path `auto`. The decoded image decides: its PSNR must be at least {threshold:g} dB, and "
        f"{threshold + record['margin_db']:g} dB during the search for fp32 modules. The SNR of the latent z0 is shown "
        f"too: the closed form amplifies an error in eps by {record['eps_gain']:g}.",
        *_degraded(record),
        "**Measured with** PyTorch on CPU; each result is rounded to float16. Maxima are over all elements of the fp32 "
        f"results, shares and RMS over at most {SHARE_SAMPLES:,} randomly chosen elements of each, errors over "
        f"{ERROR_SAMPLES:,}. Convolutions and matrix products {sums} on the machine that built this bundle (measured "
        "with sums that exceed 65,504 and return). A GPU may round partial sums, so a range counts as an overflow from "
        f"65,504 / {record['safety']:g} on. PyTorch's fused attention does not round its scores, so only their range "
        "is measured. ONNX Runtime on CPU computes fp16 graphs in fp32 and cannot show an overflow. No GPU was used.",
        "### Modules kept in fp32",
        _fp32_modules(record),
        table(("set", "fp32 modules", "images", "PSNR dB", "z0 SNR dB"), _trials(record), "lrrrr", markdown=True),
        f"![Value ranges and errors along the pipeline]({plot})",
        "Top: largest magnitude and root mean square of each result in fp32 over all images, with the limits of "
        f"float16. Bottom: SNR of fp16 along the pipeline on `{record['shown']}`, the worst image.",
        *_costs(record),
        "### Other precisions",
        table(("precision", "PSNR dB", "z0 SNR dB", "verdict"), _other_precisions(record), "lrrl", markdown=True),
        "bf16: bfloat16 arithmetic throughout. int8: weights of at least two axes rounded to 255 levels for each "
        "output channel, fp32 arithmetic. No graphs are written in either.",
        "### Operations with the least headroom",
        "Bits: doublings left to 65,504. Subnormal: share of values below 2^-14, which float16 stores with fewer bits "
        f"(in brackets: below 2^-25, which become 0). The {WORST} operations with the least headroom per component.",
        *(_layers(record, component) for component in COMPONENTS),
    ]


def _degraded(record: Row) -> list[str]:
    """Return a paragraph about the photographs that were degraded for the measurement."""
    if not record["degraded"]:
        return []
    listed = ", ".join(f"{name} ({degradation})" for name, degradation in record["degraded"].items())
    return [f"No photograph's name begins with these conditions, so photographs were degraded: {listed}."]


def _fp32_modules(record: Row) -> str:
    if not record["fp32_modules"]:
        chosen = "None, as requested" if record["given"] else "None: fp16 reaches the threshold without any"
        lines = [f"{chosen}."]
    else:
        rows = [(f"`{name}`", why) for name, why in record["fp32_modules"].items()]
        share = f"They hold {record['float32_share']:.1%} of the parameters."
        lines = [table(("module", "why"), rows, "ll", markdown=True), share]
    if record["uncovered"]:
        names = ", ".join(f"`{name}`" for name in record["uncovered"])
        lines.append(f"**Beyond the safe range of float16 and not kept in fp32: {names}.**")
    return "\n\n".join(lines)


def _trials(record: Row) -> list[tuple[object, ...]]:
    return [
        (each["description"], len(each["fp32_modules"]), each["images"], _db(each["psnr_db"]), _db(each["z0_snr_db"]))
        for each in record["trials"]
    ]


def _qualities(qualities: Mapping[str, Row]) -> list[tuple[object, ...]]:
    return [(name, _db(each["psnr_db"]), _db(each["z0_snr_db"])) for name, each in qualities.items()]


def _costs(record: Row) -> list[str]:
    """Return the error of each component, measured if fp16 without fp32 modules is below the threshold."""
    if not record["components"]:
        return []
    return [
        "### Error of each component",
        table(("only this in fp16", "PSNR dB", "z0 SNR dB"), _qualities(record["components"]), "lrr", markdown=True),
        "On the image on which fp16 without fp32 modules is worst.",
    ]


def _other_precisions(record: Row) -> list[tuple[object, ...]]:
    others, rows = record["other_precisions"], []
    for (name, psnr, snr), each in zip(_qualities(others), others.values(), strict=True):
        spare = -1.0 if each["psnr_db"] is None else each["psnr_db"] - record["threshold_db"]
        barely = "reaches the threshold barely"
        verdict = "below the threshold" if spare < 0 else "ok" if spare >= record["margin_db"] else barely
        rows.append((name, psnr, snr, verdict))
    return rows


def _layers(record: Row, component: str) -> str:
    rows = [row for row in record["operations"] if row["component"] == component and row["fp16"]]
    rows = sorted(rows, key=lambda row: -row["largest"])[:WORST]
    cells = [
        (
            f"`{row['name'].removeprefix(f'{component}.')}`{' (fp32)' if row['in_fp32_module'] else ''}",
            f"{row['largest']:.4g}",
            f"{np.log2(LARGEST / row['largest']):.1f}" if row["largest"] else "",
            f"{row['rms']:.3g}",
            f"{row['subnormal']:.2%} ({row['flushed']:.2%})",
            _db(row["snr_fp16_db"]),
            _db(row["snr_chosen_db"]),
        )
        for row in rows
    ]
    headers = (component, "largest", "bits", "rms", "subnormal", "SNR dB, all fp16", "SNR dB")
    return table(headers, cells, "lrrrrrr", markdown=True)


def _db(value: float | None) -> str:
    return "not finite" if value is None else "exact" if value >= EXACT else f"{value:.1f}"
