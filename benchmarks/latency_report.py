"""The latency table on the terminal, as JSON and as Markdown, with the notes without which it would mislead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import summary
from benchmarks.runners import PARTS
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import table

if TYPE_CHECKING:
    from benchmarks.comparison import Row

__all__ = ["Setting", "print_report"]

UNSTEADY = 1.3  # p90 over p50 above which a row is called unsteady


@dataclass(frozen=True)
class Switch:
    """What a backend takes to exchange one engine's weights for those of another condition, each time in order; same:
    whether a condition's image came back bit for bit after the others."""

    backend: str
    precision: str
    seconds: list[float]
    same: bool


@dataclass(frozen=True)
class Setting:
    """What all rows share. machine: `benchmarks.machine.facts`; not_run: backends, and why they were not measured."""

    machine: dict[str, Any]
    threads: int
    image: str
    bundle: Bundle
    not_run: Mapping[str, str]
    switches: Sequence[Switch] = ()


def print_report(rows: Sequence[Row], setting: Setting, json_path: Path, markdown_path: Path | None) -> None:
    """Writes the files and prints the table."""
    bundle = setting.bundle
    data = {
        "machine": setting.machine,
        "bundle": {"folder": str(bundle.folder), "name": bundle.manifest.name, "model": bundle.manifest.model},
        "image": setting.image,
        "threads": setting.threads,
        "rows": [asdict(row) for row in rows],
        "switches": [asdict(each) for each in setting.switches],
        "not_run": setting.not_run,
    }
    json_path.write_text(json.dumps(_plain(data), indent=1, allow_nan=False) + "\n", "utf-8")
    headers, cells = columns(rows)
    about = f"{bundle.manifest.name} on {summary(setting.machine)}; CPU threads: {setting.threads}"
    lines = [*notes(rows), *(f"not run: {name}: {reason}" for name, reason in setting.not_run.items())]
    for each in setting.switches:
        verdict = "bit for bit the same after the others" if each.same else "FAILED: not the same after the others"
        lines.append(
            f"{each.backend} {each.precision} exchanges one engine's weights: {np.median(each.seconds):.2f} s a switch "
            f"({min(each.seconds):.2f} to {max(each.seconds):.2f}); each condition's image is {verdict}"
        )
    if markdown_path:
        parts = [about, table(headers, cells, ALIGN, markdown=True), "\n".join(f"- {line}" for line in lines)]
        markdown_path.parent.mkdir(parents=True, exist_ok=True)
        markdown_path.write_text("\n\n".join(parts) + "\n", "utf-8")
    print(f"{about}\n\n{table(headers, cells, ALIGN)}\n")
    print("\n".join([*lines, str(json_path)]))


ALIGN = "lll" + "r" * len(PARTS) + "rrrrrrrl"


def columns(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """The table: medians of the components, percentiles of the image, speed-up and parity."""
    headers = [
        "size",
        "path",
        "model",
        *PARTS,
        "image",
        "p90",
        "p99",
        "first",
        "speed-up",
        "SNR dB",
        "PSNR dB",
        "parity",
    ]
    cells: list[list[object]] = []
    for row in rows:
        size = f"{row.size}" if row.batch == 1 else f"{row.size} x{row.batch}"
        parts = [_ms(row.ms[part]["p50"]) if part in row.ms else "-" for part in PARTS]
        whole = [_ms(row.ms["image"][figure]) for figure in ("p50", "p90", "p99")]
        speed_up = "-" if row.speed_up is None else f"{row.speed_up:.2f}x"
        verdict = "reference" if row.passed is None else f"{'ok' if row.passed else 'FAILED'}: {row.threshold}"
        quality = [f"{row.snr_db:.1f}", f"{row.psnr_db:.1f}", verdict]
        model = f"{row.backend} {row.precision}"
        cells.append([size, row.path, model, *parts, *whole, _ms(row.first_ms), speed_up, *quality])
    return headers, cells


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know of the figures."""
    runs = sorted({row.runs for row in rows})
    found = [
        f"milliseconds, medians, warm; {' or '.join(map(str, runs))} runs each, taking turns. image: prepare, "
        "components and finish, without file access; first: the first run of all, with what it has to load",
        "speed-up: over the fastest PyTorch row of the path on the same device; SNR and PSNR: against PyTorch in fp32",
    ]
    if runs and runs[0] < 100:
        found.append(f"p99 of {runs[0]} runs is near the slowest of them: measure longer with --seconds or --runs")
    unsteady = [row for row in rows if row.ms["image"]["p90"] > UNSTEADY * row.ms["image"]["p50"]]
    if unsteady:
        share = f"{len(unsteady)} of {len(rows)} rows are unsteady (p90 over {UNSTEADY} x p50)"
        found.append(f"{share}: the machine was busy, measure again")
    return found


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _plain(value: Any) -> Any:
    """JSON has no infinity, which two equal images have between them, and no NaN: both become null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
