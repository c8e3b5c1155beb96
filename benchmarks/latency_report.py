"""The latency table on the terminal, as JSON and as Markdown, with notes on how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.json_file import write_json
from benchmarks.machine import machine_summary
from benchmarks.runners import PARTS
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import table

if TYPE_CHECKING:
    from benchmarks.comparison import LatencyResult

__all__ = ["LatencySetting", "RefitResult", "print_report"]

UNSTEADY_RATIO = 1.3
"""Ratio of p90 to p50 above which a result counts as unsteady."""
FEW_RUNS = 100
"""Number of runs below which p99 is close to the slowest run."""
ALIGN = "lll" + "r" * len(PARTS) + "rrrrrrrl"


@dataclass(frozen=True)
class RefitResult:
    """Time that a backend takes to refit an engine with the weights of another condition.

    Attributes:
        backend: backend of the runtime.
        precision: precision of the engine.
        seconds: seconds of each refit in order.
        same: whether the image of each condition is bit-identical after refits to other conditions and back.
    """

    backend: str
    precision: str
    seconds: list[float]
    same: bool


@dataclass(frozen=True)
class LatencySetting:
    """Facts that all results of a run share.

    Attributes:
        machine: result of `benchmarks.machine.machine_info`.
        num_threads: number of CPU threads.
        image: path of the image.
        bundle: bundle that was measured.
        not_run: reason for each backend that was not measured.
        refits: refit times of backends that refit one engine.
    """

    machine: dict[str, Any]
    num_threads: int
    image: str
    bundle: Bundle
    not_run: Mapping[str, str]
    refits: Sequence[RefitResult] = ()


def print_report(
    results: Sequence[LatencyResult], setting: LatencySetting, json_path: Path, markdown_path: Path | None
) -> None:
    """Write the files and print the table.

    Args:
        results: results of all models and paths.
        setting: facts that all results share.
        json_path: file for all results.
        markdown_path: file for the table as Markdown, or None.
    """
    bundle = setting.bundle
    data = {
        "machine": setting.machine,
        "bundle": {"folder": str(bundle.folder), "name": bundle.manifest.name, "model": bundle.manifest.model},
        "image": setting.image,
        "num_threads": setting.num_threads,
        "results": [asdict(result) for result in results],
        "refits": [asdict(refit) for refit in setting.refits],
        "not_run": setting.not_run,
    }
    write_json(json_path, data)
    headers, cells = columns(results)
    title = f"{bundle.manifest.name} on {machine_summary(setting.machine)}; CPU threads: {setting.num_threads}"
    lines = [*notes(results), *(f"not run: {name}: {reason}" for name, reason in setting.not_run.items())]
    for refit in setting.refits:
        verdict = "images are bit-identical afterwards" if refit.same else "FAILED: images differ afterwards"
        lines.append(
            f"{refit.backend} {refit.precision} refits an engine in {np.median(refit.seconds):.2f} s "
            f"({min(refit.seconds):.2f} to {max(refit.seconds):.2f}); {verdict}"
        )
    if markdown_path:
        parts = [title, table(headers, cells, ALIGN, markdown=True), "\n".join(f"- {line}" for line in lines)]
        markdown_path.parent.mkdir(parents=True, exist_ok=True)
        markdown_path.write_text("\n\n".join(parts) + "\n", "utf-8")
    print(f"{title}\n\n{table(headers, cells, ALIGN)}\n")
    print("\n".join([*lines, str(json_path)]))


def columns(results: Sequence[LatencyResult]) -> tuple[list[str], list[list[object]]]:
    """Return headers and cells: medians of the components, percentiles of the image, speed-up and parity."""
    headers = ["size", "path", "model", *PARTS, "image", "p90", "p99", "first"]
    headers += ["speed-up", "SNR dB", "PSNR dB", "parity"]
    cells: list[list[object]] = []
    for result in results:
        size = f"{result.size}" if result.batch == 1 else f"{result.size} x{result.batch}"
        parts = [_ms(result.ms[part]["p50"]) if part in result.ms else "-" for part in PARTS]
        image = [_ms(result.ms["image"][percentile]) for percentile in ("p50", "p90", "p99")]
        speed_up = "-" if result.speed_up is None else f"{result.speed_up:.2f}x"
        verdict = "reference" if result.passed is None else f"{'ok' if result.passed else 'FAILED'}: {result.threshold}"
        parity = [f"{result.snr_db:.1f}", f"{result.psnr_db:.1f}", verdict]
        model = f"{result.backend} {result.precision}"
        cells.append([size, result.path, model, *parts, *image, _ms(result.first_ms), speed_up, *parity])
    return headers, cells


def notes(results: Sequence[LatencyResult]) -> list[str]:
    """Return notes on how to read the table, with warnings about few runs and unsteady results."""
    runs = sorted({result.runs for result in results})
    lines = [
        f"warm medians in milliseconds over {' or '.join(map(str, runs))} runs, models in turn. image: prepare, "
        "components and finish, without file access; first: the first run, with loading and compiling",
        "speed-up: over the fastest PyTorch result of the path on the same device; SNR and PSNR: against PyTorch fp32",
    ]
    if runs and runs[0] < FEW_RUNS:
        lines.append(f"p99 of {runs[0]} runs is close to the slowest run: measure longer with --seconds or --runs")
    unsteady = [result for result in results if result.ms["image"]["p90"] > UNSTEADY_RATIO * result.ms["image"]["p50"]]
    if unsteady:
        share = f"{len(unsteady)} of {len(results)} results are unsteady (p90 over {UNSTEADY_RATIO} x p50)"
        lines.append(f"{share}: the machine was busy, measure again")
    return lines


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
