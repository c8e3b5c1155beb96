"""Parity results of a build: as JSON, as rows of the manifest, and as a verdict of three lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.parity.compare import GATES, THRESHOLDS, ParityResult, unchecked

__all__ = ["from_rows", "manifest_rows", "margin", "read_results", "rows", "verdict", "write_results"]

FP16_STEP = "torch fp16"
"""The step whose results for the two UNets tell the runtime what a refitted fp16 engine must reach."""
UNETS = ("unet_dynamic", "unet_merged")


def write_results(results: Sequence[ParityResult], path: Path) -> None:
    """Write results as JSON.

    Args:
        results: the results.
        path: the file.
    """
    path.write_text(json.dumps(rows(results), indent=1) + "\n")


def read_results(path: Path) -> list[ParityResult]:
    """Read what `write_results` wrote.

    Args:
        path: the file.
    """
    return from_rows(json.loads(path.read_text()))


def rows(results: Sequence[ParityResult]) -> list[dict[str, Any]]:
    """Return results for JSON, which has no infinity: where nothing differs, the decibels are null.

    Args:
        results: the results.
    """
    return [{k: None if v == math.inf and k != "max_abs" else v for k, v in asdict(each).items()} for each in results]


def from_rows(data: Sequence[dict[str, Any]]) -> list[ParityResult]:
    """Return the results that `rows` took apart.

    Args:
        data: the rows.
    """
    results = []
    for row in data:
        exact = ("snr_db", "psnr_db") if row["component"] == "pipeline" else ("snr_db",)
        results.append(ParityResult(**{**row, **{key: math.inf for key in exact if row[key] is None}}))
    return results


def manifest_rows(results: Sequence[ParityResult], paths: Iterable[str]) -> list[dict[str, Any]]:
    """Return the manifest's `parity`: the worst image for each condition path, component and step with a threshold.

    To these come the worst fp16 result of each UNet, and a row whose `passed` is null for each condition path that no
    runtime ran on any image. `report/parity` holds all results.

    Args:
        results: the results of the build.
        paths: the condition paths of the bundle.
    """
    groups: dict[tuple[str, str, str], list[ParityResult]] = {}
    for result in results:
        if result.threshold is not None:
            groups.setdefault((result.path, result.component, result.step), []).append(result)
    worst = [min(group, key=lambda each: margin(each) or 0.0) for group in groups.values()]
    for component in UNETS:
        fp16 = [each for each in results if (each.step, each.component) == (FP16_STEP, component)]
        worst += [min(fp16, key=lambda each: each.snr_db)] if fp16 else []
    return [_row(each) for each in worst] + [
        {"path": path, "component": "pipeline", "step": "not checked", "passed": None}
        for path in unchecked(results, paths)
    ]


def margin(result: ParityResult) -> float | None:
    """Return how far a result is above its threshold, in dB; None if it has none.

    Args:
        result: the result.
    """
    metric, least = THRESHOLDS.get((result.component, result.step), (None, 0.0))
    if metric is None:
        return None
    reached = _psnr(result) if metric == "psnr_db" else result.snr_db
    return reached - least if math.isfinite(reached) or reached > 0 else -math.inf


def verdict(manifest: Mapping[str, Any], results: Sequence[ParityResult]) -> list[str]:
    """Return three lines: what was built, the parity verdict, and what was not checked.

    Args:
        manifest: content of `bundle.json`.
        results: the results of the build.
    """
    targets = [_target(name, each) for name, each in manifest["targets"].items()]
    paths = ("auto", *manifest["conditions"])
    built = f"Built: {manifest['name']}, condition paths {', '.join(paths)}, for {'; '.join(targets)}."
    return [built, _parity(results), _not_checked(manifest, results)]


def _target(name: str, target: Mapping[str, Any]) -> str:
    engines = len(target.get("engines", ()))
    stated = [*target["precisions"], *([f"{engines} engines"] if engines else [])]
    return f"{name} ({', '.join(stated)})"


def _parity(results: Sequence[ParityResult]) -> str:
    judged = [(margin(each), each) for each in results if each.step not in GATES]
    known = [(value, each) for value, each in judged if value is not None]
    if not known:
        return "Parity: no result has a threshold."
    missed = sum(not each.passed for _, each in known)
    value, worst = min(known, key=lambda item: item[0])
    head = f"{missed} of {len(known)} results are below their threshold" if missed else (
        f"all {len(known)} results with a threshold reach it"
    )  # fmt: skip
    where = f"{worst.step}, {worst.component}, {worst.image}, path {worst.path}, threshold {worst.threshold}"
    notes = [f"the smallest margin is {value:.1f} dB ({where})"]
    for step in GATES:
        backend, precision = step.split()
        gate = _gate(results, step)
        if not all(each.passed for each in gate):
            least = min(gate, key=_psnr)
            reached = f"PSNR {_psnr(least):.1f} dB, threshold {least.threshold}"
            notes.append(f"{precision} on {backend} is below its threshold and not offered ({reached})")
    return f"Parity: {'; '.join([head, *notes])}."


def _not_checked(manifest: Mapping[str, Any], results: Sequence[ParityResult]) -> str:
    notes = [
        f"the engines of {name}, which need their GPU"
        for name, each in manifest["targets"].items()
        if each.get("engines")
    ]
    if missing := unchecked(results, ("auto", *manifest["conditions"])):
        notes.append(f"the condition paths {', '.join(missing)}, for which there was no image")
    for step in GATES:
        backend, precision = step.split()
        if backend in manifest["targets"] and not _gate(results, step):
            notes.append(f"{precision} on {backend} (this CPU does not compute in it)")
    if "fp16" in manifest["precisions"]:
        notes.append("fp16 on a GPU (PyTorch measured it on a CPU)")
    return f"Not checked: {'; '.join(notes) or 'nothing'}."


def _gate(results: Sequence[ParityResult], step: str) -> list[ParityResult]:
    return [each for each in results if (each.step, each.component) == (step, "pipeline")]


def _psnr(result: ParityResult) -> float:
    return result.snr_db if result.psnr_db is None else result.psnr_db


def _row(result: ParityResult) -> dict[str, Any]:
    """A result in the manifest, to 0.01 dB: the metric that its threshold is about, or its SNR.

    JSON has only finite numbers: null where nothing differs, 0 where the output is not finite.
    """
    metric, _ = THRESHOLDS.get((result.component, result.step), ("snr_db", None))
    reached = _psnr(result) if metric == "psnr_db" else result.snr_db
    decibels = None if reached == math.inf else round(reached, 2) if math.isfinite(reached) else 0.0
    kept = {key: getattr(result, key) for key in ("path", "component", "step", "image", "threshold", "passed")}
    return {**kept, metric: decibels}
