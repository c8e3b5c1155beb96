"""Latency of several models on the same condition paths, with parity checks and speed-ups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.reference import TorchModel, strict_float32
from benchmarks.runners import Job, Runner
from benchmarks.timing import Rounds, Timings, measure, percentiles
from dod_runtime.restorer import Restorer
from export.parity.compare import THRESHOLDS, psnr_db, snr_db

__all__ = ["LatencyResult", "compare_models", "with_speed_ups"]


@dataclass(frozen=True)
class LatencyResult:
    """Latency and parity of one model on one condition path.

    Attributes:
        size: side of the square image in pixels.
        batch: batch size.
        path: condition path.
        backend: backend of the runtime, `pytorch_cpu` or `pytorch_cuda`.
        precision: precision of the model.
        device: `cpu` or `cuda`.
        description: backend with version, device and precision.
        runs: number of counted runs.
        first_ms: milliseconds of the first run, which loads and compiles.
        ms: percentiles in milliseconds of each component, and of the whole `image`.
        snr_db: SNR of the output against PyTorch in fp32 on the same path.
        psnr_db: PSNR against the same.
        threshold: minimum that applies, such as `SNR 80 dB`; None for the reference.
        passed: whether the threshold holds; None for the reference.
        speed_up: speed relative to the fastest PyTorch result of the path on the same device; None below the threshold.
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


def compare_models(
    restorers: Sequence[Restorer],
    models: Sequence[TorchModel],
    jobs: Sequence[Job],
    rounds: Rounds,
    paths_at_once: int,
) -> list[LatencyResult]:
    """Measure all models on the paths of one image.

    Args:
        restorers: restorers of one bundle, one for each backend and precision.
        models: PyTorch models; the first is in fp32, and its output is the reference of all parity checks.
        jobs: one job for each path, all with the same image and batch size.
        rounds: duration of the measurement of all jobs together.
        paths_at_once: number of paths measured together, so that every merged UNet stays loaded between two runs.

    Returns:
        One result for each model and path that the model can run.
    """
    results: list[LatencyResult] = []
    for chunk in (jobs[i : i + paths_at_once] for i in range(0, len(jobs), paths_at_once)):
        share = replace(rounds, seconds=rounds.seconds * len(chunk) / len(jobs))
        for model in models:
            model.merge([job.condition for job in chunk if job.condition != "auto"])
        with strict_float32():
            expected = {job.condition: Runner(models[0], restorers[0], job).restore() for job in chunk}
        able = {job.condition: [each for each in restorers if job.condition in each.conditions] for job in chunk}
        runners = [Runner(each, restorers[0], job) for job in chunk for each in (*models, *able[job.condition])]
        for device in ("cpu", "cuda"):  # separately: a GPU lowers its clock while the CPU computes
            selected = [runner for runner in runners if runner.device == device]
            if selected:
                label = f"{jobs[0].pixels.shape[0]} px on {device}"
                timings = measure([runner.visit for runner in selected], share, label)
                results += [_result(runner, times, expected) for runner, times in zip(selected, timings, strict=True)]
    return with_speed_ups(results)


def _result(runner: Runner, timings: Timings, expected: dict[str, np.ndarray]) -> LatencyResult:
    model, job, output = runner.model, runner.job, runner.output
    assert output is not None
    parity = {"snr_db": snr_db(expected[job.condition], output), "psnr_db": psnr_db(expected[job.condition], output)}
    threshold, passed = None, None
    if isinstance(model, Restorer) or model.precision != "fp32":
        measured_with = "openvino" if model.backend == "openvino" else "onnx"
        metric, minimum = THRESHOLDS["pipeline", f"{measured_with} {model.precision}"]
        threshold = f"{metric.removesuffix('_db').upper()} {minimum:g} dB"
        passed = bool(np.isfinite(output).all() and parity[metric] >= minimum)
    return LatencyResult(
        size=job.pixels.shape[0],
        batch=job.batch,
        path=job.condition,
        backend=model.backend,
        precision=model.precision,
        device=runner.device,
        description=model.description,
        runs=len(timings.parts["image"]),
        first_ms=round(timings.first["image"] * 1e3, 3),
        ms={part: percentiles(seconds) for part, seconds in timings.parts.items()},
        snr_db=parity["snr_db"],
        psnr_db=parity["psnr_db"],
        threshold=threshold,
        passed=passed,
    )


def with_speed_ups(results: Sequence[LatencyResult]) -> list[LatencyResult]:
    """Add speed-ups of the median of the whole image to results that passed their parity check.

    Args:
        results: results without speed-ups.

    Returns:
        The results in the same order.
    """
    fastest: dict[tuple[object, ...], float] = {}
    for result in results:
        if result.backend.startswith("pytorch") and result.passed is not False:
            median = result.ms["image"]["p50"]
            fastest[_group(result)] = min(fastest.get(_group(result), median), median)
    return [
        replace(result, speed_up=round(fastest[_group(result)] / result.ms["image"]["p50"], 4))
        if result.passed is not False and _group(result) in fastest
        else result
        for result in results
    ]


def _group(result: LatencyResult) -> tuple[object, ...]:
    """Return the key that results must share to be compared."""
    return result.size, result.batch, result.path, result.device
