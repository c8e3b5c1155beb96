"""Quality: clean photographs are degraded, restored with a bundle, and compared with what they were.

`python benchmarks/quality.py --bundle build/mini` prints a table for each task and writes the pictures, a contact sheet
and the figures as JSON. `python -m dod.evaluate build/quality/output build/quality/truth` gives the same figures again.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: the checkout's root, not this folder, is where imports start
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from benchmarks.machine import facts
from benchmarks.photographs import centre_crop, photographs
from dod.contact_sheet import Entry, contact_sheet
from dod.data.degradations import degrade, rng_for
from dod.errors import DODError
from dod.metrics import core_values
from dod.scores import Score, mean
from runtime.console import Parser, progress, run_command, table
from runtime.errors import BackendError, UsageError
from runtime.restorer import Restorer


@dataclass(frozen=True)
class Task:
    """A way to spoil a photograph; `degradation` None leaves it clean. fixed: parameters that are not drawn."""

    name: str
    degradation: str | None
    fixed: Mapping[str, Any] = field(default_factory=dict)


BUNDLE = Path("build/mini")
OUT = Path("build/quality")
SIZE = 512
SHOWN = 3  # photographs on the contact sheet
FIGURES = "quality.json"
TASKS = (
    Task("clean", None),
    Task("noise-15", "noise", {"sigma": 15.0}),
    Task("noise-25", "noise", {"sigma": 25.0}),
    Task("noise-50", "noise", {"sigma": 50.0}),
    Task("haze", "haze"),
    Task("rain", "rain"),
    Task("blur", "blur"),
    Task("low-light", "low-light"),
)


@dataclass(frozen=True)
class Result:
    """One photograph of one task. pictures: input, output and truth, uint8 [H, W, 3]."""

    task: str
    name: str
    before: Score
    after: Score
    pictures: tuple[np.ndarray, np.ndarray, np.ndarray]
    parameters: Mapping[str, Any]


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/quality.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="default: %(default)s")
    made.add_argument("--photographs", type=Path, help="folder of clean photographs (default: scikit-image's)")
    made.add_argument("--size", type=int, default=SIZE, help="they are cropped to at most this (default: %(default)s)")
    made.add_argument("--limit", type=int, help="take only the first so many")
    made.add_argument("--condition", default="auto", help="auto, a degradation, or matching: the task's own")
    made.add_argument("--seed", type=int, default=0, help="of the degradations (default: %(default)s)")
    made.add_argument("--backend", default="auto", help="default: %(default)s")
    made.add_argument("--precision", default="auto", help="auto, fp32 or fp16")
    made.add_argument("--threads", type=int, help="threads of the CPU (default: all cores)")
    made.add_argument("--out", type=Path, default=OUT, help="folder for pictures and figures (default: %(default)s)")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    arguments = parser().parse_args(argv)
    for name in ("size", "limit"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    check_out(arguments.out)
    with Restorer(
        arguments.bundle, arguments.backend, precision=arguments.precision, threads=arguments.threads
    ) as restorer:
        paths = {task.name: path_of(task, arguments.condition) for task in TASKS}
        for path in paths.values():
            restorer.check_condition(path)
        clean = {
            name: np.ascontiguousarray(centre_crop(pixels, arguments.size))
            for name, pixels in photographs(arguments.photographs, arguments.limit).items()
        }
        work = [(task, name, truth) for task in TASKS for name, truth in clean.items()]
        results = [
            restore(restorer, task, name, truth, paths[task.name], arguments.seed)
            for task, name, truth in progress(work, label="restoring")
        ]
        setting = {
            "machine": facts(),
            "bundle": str(restorer.bundle.folder),
            "model": dict(restorer.bundle.manifest.model),
            "backend": restorer.description,
            "condition": arguments.condition,
            "size": arguments.size,
            "seed": arguments.seed,
        }
    write(results, setting, arguments.out)
    print_tables(results, f"{restorer.bundle.manifest.name}, {setting['backend']}, condition {arguments.condition}")
    print(arguments.out / "contact_sheet.png")
    return 0


def path_of(task: Task, condition: str) -> str:
    """The condition that a task is restored with."""
    return (task.degradation or "auto") if condition == "matching" else condition


def restore(restorer: Restorer, task: Task, name: str, truth: np.ndarray, condition: str, seed: int) -> Result:
    """Degrades one photograph, uint8 [H, W, 3], restores it and compares both with it."""
    spoilt, parameters = truth, {}
    if task.degradation:
        image = truth.astype(np.float32) / np.float32(255)
        degraded, parameters = degrade(image, task.degradation, rng_for(name, task.degradation, seed), **task.fixed)
        spoilt = np.rint(degraded * 255).astype(np.uint8)
    restored = restorer.restore(spoilt, condition)
    if not isinstance(restored, np.ndarray):
        raise BackendError(f"a restored array is an array, not {type(restored).__name__}")
    scalars = {key: value for key, value in parameters.items() if isinstance(value, int | float)}
    before, after = score(name, spoilt, truth), score(name, restored, truth)
    return Result(task.name, name, before, after, (spoilt, restored, truth), scalars)


def check_out(out: Path) -> None:
    """Raises UsageError where `out` holds something that this command has not written."""
    if out.exists() and not (out / FIGURES).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} exists and was not written by this command: choose another folder")


def write(results: Sequence[Result], setting: Mapping[str, Any], out: Path) -> None:
    """Pictures, contact sheet and figures: made beside `out`, then put in the place of an earlier run's."""
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    for result in results:
        for kind, picture in zip(("input", "output", "truth"), result.pictures, strict=True):
            path = staging / kind / result.task / f"{result.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, compress_level=1)
    entries = []
    for task in TASKS:
        for result in [result for result in results if result.task == task.name][:SHOWN]:
            gain = f"{result.before.psnr:.1f} to {result.after.psnr:.1f} dB"
            entries.append(Entry(f"{result.task}: {result.name}, {gain} (input, output, truth)", result.pictures))
    contact_sheet(entries, per_line=min(SHOWN, len(results) // len(TASKS))).save(staging / "contact_sheet.png")
    data = {**setting, "tasks": {task.name: as_json(task, results) for task in TASKS}}
    (staging / FIGURES).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", "utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("input", "output", "truth"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("input", "output", "truth", "contact_sheet.png", FIGURES):
        (staging / name).replace(out / name)
    staging.rmdir()


def as_json(task: Task, results: Sequence[Result]) -> dict[str, Any]:
    """The figures of one task."""

    def plain(value: Score) -> dict[str, float | None]:
        return {"psnr": value.psnr if math.isfinite(value.psnr) else None, "ssim": value.ssim}

    mine = [result for result in results if result.task == task.name]
    return {
        "degradation": task.degradation,
        "fixed": dict(task.fixed),
        "pictures": {
            each.name: {"input": plain(each.before), "output": plain(each.after), "parameters": dict(each.parameters)}
            for each in mine
        },
        "mean": {
            "input": plain(mean([each.before for each in mine])),
            "output": plain(mean([each.after for each in mine])),
        },
    }


def print_tables(results: Sequence[Result], title: str) -> None:
    """A table for each task, and one line for each that says what came of it."""
    print(title)
    lines = []
    for task in TASKS:
        mine = [(each.before, each.after) for each in results if each.task == task.name]
        mine.append((mean([before for before, _ in mine]), mean([after for _, after in mine])))
        rows = [[b.name, *cells(b), *cells(a), f"{a.psnr - b.psnr:+.2f}" if task.degradation else "-"] for b, a in mine]
        headers = [task.name, "input PSNR", "SSIM", "output PSNR", "SSIM", "gain dB"]
        print(f"\n{table(headers, rows, 'lrrrrr')}")
        before, after = mine[-1]
        if task.degradation is None:
            lines.append(f"a clean photograph comes back at {after.psnr:.2f} dB")
        else:
            sigma = f" sigma {task.fixed['sigma']:g}" if "sigma" in task.fixed else ""
            figures = f"{before.psnr:.2f} -> {after.psnr:.2f} dB, SSIM {before.ssim:.3f} -> {after.ssim:.3f}"
            lines.append(f"{task.degradation}{sigma}: {figures}")
    print("\n" + "\n".join(lines))


def cells(each: Score) -> list[str]:
    """PSNR and SSIM as they stand in a table."""
    return [f"{each.psnr:.2f}", f"{each.ssim:.4f}"]


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
