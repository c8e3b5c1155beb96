"""Output of `benchmarks/quality.py`: images, a contact sheet, results as JSON, and tables on the terminal."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.classical import CLASSICAL_METHODS
from benchmarks.degradation_cases import CASES, PSNR_CEILING, DegradationCase, QualityResult
from dod.evaluation.contact_sheet import SheetEntry, contact_sheet
from dod.evaluation.scores import Score, mean
from dod_runtime.console import table

__all__ = ["CONTACT_SHEET", "RESULTS", "print_tables", "write_results"]

RESULTS = "quality.json"
"""Name of the file with all results."""
CONTACT_SHEET = "contact_sheet.png"
"""Name of the contact sheet."""
ROLES = ("input", "classical", "output", "truth")
"""Roles of the images of one photograph, each a folder of the output."""
MAX_SHOWN = 3
"""Maximum number of photographs of each case on the contact sheet."""


def write_results(results: Sequence[QualityResult], setting: Mapping[str, Any], out: Path) -> None:
    """Write images, contact sheet and results; they replace those of an earlier run once all are complete.

    Args:
        results: results of all photographs in all cases.
        setting: JSON values that describe the run.
        out: folder to write.
    """
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    for result in results:
        for role, image in result.images.items():
            path = staging / role / result.case / f"{result.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
    _contact_sheet(results).save(staging / CONTACT_SHEET)
    data = {**setting, "cases": {case.name: as_json(case, results) for case in CASES}}
    if compared := compare_with_classical(results):
        data["classical"] = {
            name: {"method": CLASSICAL_METHODS[name].name, "classical_psnr": classical, "output_psnr": output}
            for name, (classical, output) in compared.items()
        }
    (staging / RESULTS).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", "utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for name in ROLES:
        shutil.rmtree(out / name, ignore_errors=True)
    for path in sorted(staging.iterdir()):
        path.replace(out / path.name)
    staging.rmdir()


def as_json(case: DegradationCase, results: Sequence[QualityResult]) -> dict[str, Any]:
    """Return the results of one case as JSON values."""

    def plain(score: Score) -> dict[str, float | None]:
        return {key: number if math.isfinite(number) else None for key, number in score.values.items()}

    selected = [result for result in results if result.case == case.name]
    return {
        "degradation": case.degradation,
        "fixed": dict(case.fixed),
        "images": {
            each.name: {
                **{role: plain(score) for role, score in each.scores.items()},
                "parameters": dict(each.parameters),
            }
            for each in selected
        },
        "mean": {role: plain(score) for role, score in mean_scores(selected).items()},
    }


def mean_scores(results: Sequence[QualityResult]) -> dict[str, Score]:
    """Return mean scores of one case by role; PSNR is clipped to `PSNR_CEILING`."""
    return {role: mean([_clipped(each.scores[role]) for each in results]) for role in results[0].scores}


def _clipped(score: Score) -> Score:
    return Score(score.name, {**score.values, "psnr": min(score.values["psnr"], PSNR_CEILING)})


def compare_with_classical(results: Sequence[QualityResult]) -> dict[str, tuple[float, float]]:
    """Return mean PSNR in dB of (classical, output) for each degradation that a classical method restored.

    Cases of one degradation, such as three noise levels, have equal weight.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case in CASES:
        selected = [each for each in results if each.case == case.name and "classical" in each.scores]
        if case.degradation and selected:
            scores = mean_scores(selected)
            pair = scores["classical"].values["psnr"], scores["output"].values["psnr"]
            pairs.setdefault(case.degradation, []).append(pair)
    return {
        name: (float(np.mean(values, axis=0)[0]), float(np.mean(values, axis=0)[1])) for name, values in pairs.items()
    }


def print_tables(results: Sequence[QualityResult], title: str) -> None:
    """Print a table for each case, one summary line for each, and the comparison with the classical methods.

    Args:
        results: results of all photographs in all cases.
        title: first line.
    """
    print(title)
    lines = []
    for case in CASES:
        selected = [each for each in results if each.case == case.name]
        total = mean_scores(selected)
        rows = [
            _cells(name, scores, case)
            for name, scores in [*((each.name, each.scores) for each in selected), ("mean", total)]
        ]
        names = [method_name(case) if role == "classical" else role for role in total]
        headers = [case.name, *(header for name in names for header in (f"{name} PSNR", "SSIM")), "gain dB"]
        print(f"\n{table(headers, rows, 'l' + 'r' * (len(headers) - 1))}")
        lines.append(_summary_line(case, total))
    print("\n" + "\n".join(lines))
    if compared := compare_with_classical(results):
        better = [name for name, (classical, output) in compared.items() if output > classical]
        others = [f"{name} ({CLASSICAL_METHODS[name].name})" for name in compared if name not in better]
        rest = f"; not on {', '.join(others)}" if others else ""
        print(f"higher PSNR than the classical method: {len(better)} of {len(compared)} degradations{rest}")


def method_name(case: DegradationCase) -> str:
    """Return the name of the classical method of a case, or "" for the clean case."""
    return CLASSICAL_METHODS[case.degradation].name if case.degradation else ""


def _summary_line(case: DegradationCase, total: Mapping[str, Score]) -> str:
    before, after = total["input"].values, total["output"].values
    if case.degradation is None:
        return f"clean: output {after['psnr']:.2f} dB"
    sigma = f" sigma {case.fixed['sigma']:g}" if "sigma" in case.fixed else ""
    text = f"{before['psnr']:.2f} -> {after['psnr']:.2f} dB, SSIM {before['ssim']:.3f} -> {after['ssim']:.3f}"
    if "classical" in total:
        classical = total["classical"].values
        text += f" ({method_name(case)} {classical['psnr']:.2f} dB, {classical['ssim']:.3f})"
    return f"{case.degradation}{sigma}: {text}"


def _cells(name: str, scores: Mapping[str, Score], case: DegradationCase) -> list[str]:
    cells = [
        cell for score in scores.values() for cell in (f"{score.values['psnr']:.2f}", f"{score.values['ssim']:.4f}")
    ]
    gain = scores["output"].values["psnr"] - scores["input"].values["psnr"] if case.degradation else None
    return [name, *cells, "-" if gain is None else f"{gain:+.2f}"]


def _contact_sheet(results: Sequence[QualityResult]) -> Image.Image:
    roles = [role for role in ROLES if any(role in each.images for each in results)]
    entries = []
    for case in CASES:
        for result in [each for each in results if each.case == case.name][:MAX_SHOWN]:
            before, after = (result.scores[role].values["psnr"] for role in ("input", "output"))
            # a clean photograph has no classical result
            images = [result.images.get(role, result.images["input"]) for role in roles]
            caption = f"{result.case}: {result.name}, {before:.1f} to {after:.1f} dB ({', '.join(roles)})"
            entries.append(SheetEntry(caption, images))
    return contact_sheet(entries, per_line=min(MAX_SHOWN, len(results) // len(CASES)))
