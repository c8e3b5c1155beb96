"""Models side by side on the same paths: their times, their images' parity, and the speed-ups that it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.reference import TorchModel, strict_float32
from benchmarks.runners import Job, Runner
from benchmarks.timing import Series, Turns, measure, percentiles
from dod_runtime.restorer import Restorer
from export.parity.compare import THRESHOLDS, psnr_db, snr_db

__all__ = ["Row", "compare", "with_speed_ups"]


@dataclass(frozen=True)
class Row:
    """One model on one path. ms: percentiles of each part, and of the whole `image`; first_ms: the first, cold one.

    snr_db, psnr_db: against PyTorch in float32 on the same path. passed: None for PyTorch in float32, which decides.
    speed_up: over the fastest PyTorch row of the path on the same device; None where the parity budget was missed.
    """

    size: int
    batch: int
    path: str
    backend: str
    precision: str
    device: str
    description: str
    runs: int
    first_ms: float
    ms: dict[str, dict[str, float]]
    snr_db: float
    psnr_db: float
    threshold: str | None
    passed: bool | None
    speed_up: float | None = None


def compare(
    restorers: Sequence[Restorer], models: Sequence[TorchModel], jobs: Sequence[Job], turns: Turns, at_once: int
) -> list[Row]:
    """Measures all paths of one image. models[0], in float32, gives the images that all are judged by.

    at_once: how many paths are measured together, so that no merged UNet is loaded anew between two runs.
    """
    rows: list[Row] = []
    for chunk in (jobs[i : i + at_once] for i in range(0, len(jobs), at_once)):
        share = replace(turns, seconds=turns.seconds * len(chunk) / len(jobs))
        for model in models:
            model.merge([job.condition for job in chunk if job.condition != "auto"])
        with strict_float32():
            truths = {job.condition: Runner(models[0], restorers[0], job).restore() for job in chunk}
        able = {job.condition: [each for each in restorers if job.condition in each.conditions] for job in chunk}
        runners = [Runner(each, restorers[0], job) for job in chunk for each in (*models, *able[job.condition])]
        for device in ("cpu", "cuda"):  # apart: a GPU slows its clock down while the CPU computes
            here = [runner for runner in runners if runner.device == device]
            if here:
                label = f"{jobs[0].pixels.shape[0]} px on {device}"
                series = measure([runner.visit for runner in here], share, label)
                rows += [_row(runner, taken, truths) for runner, taken in zip(here, series, strict=True)]
    return with_speed_ups(rows)


def _row(runner: Runner, series: Series, truths: dict[str, np.ndarray]) -> Row:
    model, job, output = runner.model, runner.job, runner.output
    assert output is not None
    figures = {"snr_db": snr_db(truths[job.condition], output), "psnr_db": psnr_db(truths[job.condition], output)}
    threshold, passed = None, None
    if isinstance(model, Restorer) or model.precision != "fp32":
        measured_with = "openvino" if model.backend == "openvino" else "onnx"
        figure, least = THRESHOLDS["pipeline", f"{measured_with} {model.precision}"]
        threshold = f"{figure.removesuffix('_db').upper()} {least:g} dB"
        passed = bool(np.isfinite(output).all() and figures[figure] >= least)
    return Row(
        size=job.pixels.shape[0],
        batch=job.batch,
        path=job.condition,
        backend=model.backend,
        precision=model.precision,
        device=runner.device,
        description=model.description,
        runs=len(series.parts["image"]),
        first_ms=round(series.first["image"] * 1e3, 3),
        ms={part: percentiles(seconds) for part, seconds in series.parts.items()},
        snr_db=figures["snr_db"],
        psnr_db=figures["psnr_db"],
        threshold=threshold,
        passed=passed,
    )


def with_speed_ups(rows: Sequence[Row]) -> list[Row]:
    """The rows with their speed-ups, at the median of the whole image, where their images have earned one."""
    best: dict[tuple[object, ...], float] = {}
    for row in rows:
        if row.backend.startswith("pytorch") and row.passed is not False:
            median = row.ms["image"]["p50"]
            best[_rivals(row)] = min(best.get(_rivals(row), median), median)
    return [
        replace(row, speed_up=round(best[_rivals(row)] / row.ms["image"]["p50"], 4))
        if row.passed is not False and _rivals(row) in best
        else row
        for row in rows
    ]


def _rivals(row: Row) -> tuple[object, ...]:
    return row.size, row.batch, row.path, row.device
