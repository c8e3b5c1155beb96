"""What `benchmarks/quality.py` leaves: images, a contact sheet, figures as JSON, and tables on the terminal."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.classical import METHODS
from benchmarks.tasks import CEILING, TASKS, Result, Task
from dod.evaluation.contact_sheet import SheetEntry, contact_sheet
from dod.evaluation.scores import Score, mean
from dod_runtime.console import table

__all__ = ["FIGURES", "SHEET", "print_tables", "write"]

FIGURES = "quality.json"
SHEET = "contact_sheet.png"
KINDS = ("input", "classical", "output", "truth")
SHOWN = 3  # photographs of each task on the contact sheet


def write(results: Sequence[Result], setting: Mapping[str, Any], out: Path) -> None:
    """Images, contact sheet and figures: made beside `out`, then put in the place of an earlier run's."""
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    for result in results:
        for kind, image in result.images.items():
            path = staging / kind / result.task / f"{result.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
    _sheet(results).save(staging / SHEET)
    data = {**setting, "tasks": {task.name: as_json(task, results) for task in TASKS}}
    if compared := compare(results):
        data["classical"] = {
            name: {"method": METHODS[name].name, "classical_psnr": c, "output_psnr": o}
            for name, (c, o) in compared.items()
        }
    (staging / FIGURES).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", "utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for name in KINDS:
        shutil.rmtree(out / name, ignore_errors=True)
    for path in sorted(staging.iterdir()):
        path.replace(out / path.name)
    staging.rmdir()


def as_json(task: Task, results: Sequence[Result]) -> dict[str, Any]:
    """The figures of one task."""

    def plain(value: Score) -> dict[str, float | None]:
        return {key: number if math.isfinite(number) else None for key, number in value.values.items()}

    mine = [result for result in results if result.task == task.name]
    return {
        "degradation": task.degradation,
        "fixed": dict(task.fixed),
        "images": {
            each.name: {
                **{kind: plain(score) for kind, score in each.scores.items()},
                "parameters": dict(each.parameters),
            }
            for each in mine
        },
        "mean": {kind: plain(score) for kind, score in means(mine).items()},
    }


def means(results: Sequence[Result]) -> dict[str, Score]:
    """The mean scores of results of one task, by kind; a PSNR of more than `CEILING` counts as that."""
    return {kind: mean([_bounded(each.scores[kind]) for each in results]) for kind in results[0].scores}


def _bounded(score: Score) -> Score:
    return Score(score.name, {**score.values, "psnr": min(score.values["psnr"], CEILING)})


def compare(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Mean PSNR in dB of (classical, output) for each degradation that a classical method was run on.

    Where a degradation has several tasks, as noise has, they count alike.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for task in TASKS:
        mine = [each for each in results if each.task == task.name and "classical" in each.scores]
        if task.degradation and mine:
            scores = means(mine)
            pair = scores["classical"].values["psnr"], scores["output"].values["psnr"]
            found.setdefault(task.degradation, []).append(pair)
    return {name: (_mean([c for c, _ in pairs]), _mean([o for _, o in pairs])) for name, pairs in found.items()}


def print_tables(results: Sequence[Result], title: str) -> None:
    """A table for each task, one line for each that says what came of it, and how the classical methods compare."""
    print(title)
    lines = []
    for task in TASKS:
        mine = [each for each in results if each.task == task.name]
        total = means(mine)
        rows = [
            _row(name, scores, task) for name, scores in [*((each.name, each.scores) for each in mine), ("mean", total)]
        ]
        kinds = [method_of(task) if kind == "classical" else kind for kind in total]
        headers = [task.name, *(header for kind in kinds for header in (f"{kind} PSNR", "SSIM")), "gain dB"]
        print(f"\n{table(headers, rows, 'l' + 'r' * (len(headers) - 1))}")
        lines.append(_line(task, total))
    print("\n" + "\n".join(lines))
    if compared := compare(results):
        better = [name for name, (classical, output) in compared.items() if output > classical]
        others = [f"{name} ({METHODS[name].name})" for name in compared if name not in better]
        rest = f"; not on {', '.join(others)}" if others else ""
        print(f"the bundle has more PSNR than the classical method on {len(better)} of {len(compared)} tasks{rest}")


def method_of(task: Task) -> str:
    """The name of the classical method of a task."""
    return METHODS[task.degradation].name if task.degradation else ""


def _line(task: Task, total: Mapping[str, Score]) -> str:
    before, after = total["input"].values, total["output"].values
    if task.degradation is None:
        return f"a clean photograph comes back at {after['psnr']:.2f} dB"
    sigma = f" sigma {task.fixed['sigma']:g}" if "sigma" in task.fixed else ""
    figures = f"{before['psnr']:.2f} -> {after['psnr']:.2f} dB, SSIM {before['ssim']:.3f} -> {after['ssim']:.3f}"
    if "classical" in total:
        other = total["classical"].values
        figures += f" ({method_of(task)} {other['psnr']:.2f} dB, {other['ssim']:.3f})"
    return f"{task.degradation}{sigma}: {figures}"


def _row(name: str, scores: Mapping[str, Score], task: Task) -> list[str]:
    cells = [
        cell for score in scores.values() for cell in (f"{score.values['psnr']:.2f}", f"{score.values['ssim']:.4f}")
    ]
    gain = scores["output"].values["psnr"] - scores["input"].values["psnr"] if task.degradation else None
    return [name, *cells, "-" if gain is None else f"{gain:+.2f}"]


def _sheet(results: Sequence[Result]) -> Image.Image:
    kinds = [kind for kind in KINDS if any(kind in each.images for each in results)]
    entries = []
    for task in TASKS:
        for result in [each for each in results if each.task == task.name][:SHOWN]:
            before, after = (result.scores[kind].values["psnr"] for kind in ("input", "output"))
            there = [result.images.get(kind, result.images["input"]) for kind in kinds]  # no method for a clean one
            caption = f"{result.task}: {result.name}, {before:.1f} to {after:.1f} dB ({', '.join(kinds)})"
            entries.append(SheetEntry(caption, there))
    return contact_sheet(entries, per_line=min(SHOWN, len(results) // len(TASKS)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
