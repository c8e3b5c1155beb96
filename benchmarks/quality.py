"""Quality: clean photographs are degraded, restored with a bundle, and compared with what they were.

`python benchmarks/quality.py --bundle build/mini` prints a table for each task and writes the images, a contact sheet
and the figures as JSON. `python -m dod.evaluation.evaluate build/quality/output build/quality/truth` gives the same
figures again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.classical import classical
from benchmarks.machine import facts
from benchmarks.photographs import OWN, photographs
from benchmarks.quality_report import FIGURES, SHEET, print_tables, write
from benchmarks.tasks import TASKS, Result, Task, spoil
from dod.data.images import centre_crop
from dod.errors import DODError
from dod.evaluation.metrics import core_values
from dod.evaluation.scores import Score
from dod_runtime.console import Parser, progress, run_command
from dod_runtime.errors import BackendError, UsageError
from dod_runtime.restorer import Restorer

BUNDLE = Path("build/mini")
OUT = Path("build/quality")
SIZE = 512


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/quality.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="default: %(default)s")
    made.add_argument(
        "--photographs",
        nargs="+",
        default=[OWN],
        metavar="FOLDER",
        help="folders of clean photographs, or the word scikit-image for its own (default: %(default)s)",
    )
    made.add_argument("--size", type=int, default=SIZE, help="they are cropped to at most this (default: %(default)s)")
    made.add_argument("--limit", type=int, help="take only the first so many of each folder")
    made.add_argument("--condition", default="auto", help="auto, a degradation, or matching: the task's own")
    made.add_argument("--seed", type=int, default=0, help="of the degradations (default: %(default)s)")
    made.add_argument("--backend", default="auto", help="default: %(default)s")
    made.add_argument("--precision", default="auto", help="auto, fp32 or fp16")
    made.add_argument("--num-threads", type=int, help="threads of the CPU (default: all cores)")
    made.add_argument("--classical", action="store_true", help="put a classical method for each task beside the bundle")
    made.add_argument("--out", type=Path, default=OUT, help="folder for images and figures (default: %(default)s)")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    arguments = parser().parse_args(argv)
    for name in ("size", "limit"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    check_out(arguments.out)
    with Restorer(
        arguments.bundle, arguments.backend, precision=arguments.precision, num_threads=arguments.num_threads
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
            restore(restorer, task, name, truth, paths[task.name], arguments.seed, arguments.classical)
            for task, name, truth in progress(work, label="restoring")
        ]
        setting = {
            "machine": facts(),
            "bundle": str(restorer.bundle.folder),
            "model": dict(restorer.bundle.manifest.model),
            "backend": restorer.description,
            "condition": arguments.condition,
            "photographs": list(clean),
            "size": arguments.size,
            "seed": arguments.seed,
        }
    write(results, setting, arguments.out)
    print_tables(results, f"{restorer.bundle.manifest.name}, {setting['backend']}, condition {arguments.condition}")
    print(arguments.out / SHEET)
    return 0


def path_of(task: Task, condition: str) -> str:
    """The condition that a task is restored with."""
    return (task.degradation or "auto") if condition == "matching" else condition


def restore(
    restorer: Restorer, task: Task, name: str, truth: np.ndarray, condition: str, seed: int, with_classical: bool
) -> Result:
    """Degrades one photograph, uint8 [H, W, 3], restores it and compares what there is with it."""
    spoilt, parameters = spoil(task, name, truth, seed)
    images = {"input": spoilt}
    if with_classical and task.degradation:
        images["classical"] = classical(spoilt, task.degradation)
    restored = restorer.restore(spoilt, condition)
    if not isinstance(restored, np.ndarray):
        raise BackendError(f"a restored array is an array, not {type(restored).__name__}")
    images["output"] = restored
    scores = {kind: Score(name, core_values(name, image, truth)) for kind, image in images.items()}
    return Result(task.name, name, scores, {**images, "truth": truth}, parameters)


def check_out(out: Path) -> None:
    """Raises UsageError where `out` holds something that this command has not written, or is `.` or `..`."""
    if out.name in ("", ".."):
        raise UsageError(f"--out {out}: name the folder itself, such as {out.resolve() / 'quality'}")
    if out.exists() and not (out / FIGURES).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} exists and was not written by this command: choose another folder")


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
