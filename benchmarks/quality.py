"""Restoration quality: degrade clean photographs, restore them with a bundle, and measure PSNR and SSIM.

`python benchmarks/quality.py --bundle build/mini` prints a table for each degradation case and writes the images, a
contact sheet and the results as JSON. `dod-evaluate images build/quality/output build/quality/truth` computes the same
values from the images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: import from the checkout's root and runtime/, not from this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.classical import restore_classically
from benchmarks.common_options import (
    add_bundle,
    add_photographs,
    add_runtime,
    benchmark_parser,
    check_at_least_one,
)
from benchmarks.degradation_cases import CASES, DegradationCase, QualityResult, degrade_photograph
from benchmarks.machine import machine_info
from benchmarks.photographs import load_photographs
from benchmarks.quality_report import CONTACT_SHEET, RESULTS, print_tables, write_results
from dod.data.images import centre_crop
from dod.errors import DODError
from dod.evaluation.metrics import core_values
from dod.evaluation.scores import Score
from dod_runtime.console import Parser, progress, run_command
from dod_runtime.errors import BackendError, UsageError
from dod_runtime.restorer import Restorer

__all__ = ["main", "parser"]

OUT = Path("build/quality")
SIZE = 512


def parser() -> Parser:
    """Return the command's parser."""
    made = benchmark_parser("quality", __doc__ or "")
    inputs = made.add_argument_group("input")
    add_bundle(inputs)
    add_photographs(inputs, SIZE)
    restoration = made.add_argument_group("restoration")
    restoration.add_argument(
        "--condition",
        default="auto",
        help="condition path: auto, a degradation, or matching for the degradation of each case (default: %(default)s)",
    )
    add_runtime(restoration)
    restoration.add_argument(
        "--classical", action="store_true", help="also restore with one classical method for each degradation"
    )
    output = made.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, default=OUT, metavar="FOLDER", help="folder for images and results (default: %(default)s)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        Exit code 0.

    Raises:
        UsageError: an argument is invalid, or `--out` holds other files.
    """
    arguments = parser().parse_args(argv)
    check_at_least_one(arguments, "size", "limit")
    check_out(arguments.out)
    with Restorer(
        arguments.bundle, backend=arguments.backend, precision=arguments.precision, num_threads=arguments.num_threads
    ) as restorer:
        conditions = {case.name: condition_of(case, arguments.condition) for case in CASES}
        for condition in conditions.values():
            restorer.check_condition(condition)
        clean = {
            name: np.ascontiguousarray(centre_crop(pixels, arguments.size))
            for name, pixels in load_photographs(arguments.photographs, arguments.limit).items()
        }
        work = [(case, name, truth) for case in CASES for name, truth in clean.items()]
        results = [
            restore(restorer, case, name, truth, conditions[case.name], arguments.seed, arguments.classical)
            for case, name, truth in progress(work, label="restoring")
        ]
        setting = {
            "machine": machine_info(),
            "bundle": str(restorer.bundle.folder),
            "model": dict(restorer.bundle.manifest.model),
            "backend": restorer.description,
            "condition": arguments.condition,
            "photographs": list(clean),
            "size": arguments.size,
            "seed": arguments.seed,
        }
    write_results(results, setting, arguments.out)
    print_tables(results, f"{restorer.bundle.manifest.name}, {setting['backend']}, condition {arguments.condition}")
    print(arguments.out / CONTACT_SHEET)
    return 0


def condition_of(case: DegradationCase, condition: str) -> str:
    """Return the condition path that a case is restored with; `matching` selects the case's degradation."""
    return (case.degradation or "auto") if condition == "matching" else condition


def restore(
    restorer: Restorer,
    case: DegradationCase,
    name: str,
    truth: np.ndarray,
    condition: str,
    seed: int,
    with_classical: bool,
) -> QualityResult:
    """Degrade and restore one photograph, uint8 [H, W, 3], and compute the scores of all images against it."""
    degraded, parameters = degrade_photograph(case, name, truth, seed)
    images = {"input": degraded}
    if with_classical and case.degradation:
        images["classical"] = restore_classically(degraded, case.degradation)
    restored = restorer.restore(degraded, condition=condition)
    if not isinstance(restored, np.ndarray):
        raise BackendError(f"expected an array from the restorer, not {type(restored).__name__}")
    images["output"] = restored
    scores = {role: Score(name, core_values(name, image, truth)) for role, image in images.items()}
    return QualityResult(case.name, name, scores, {**images, "truth": truth}, parameters)


def check_out(out: Path) -> None:
    """Raise UsageError if `out` holds files that this command did not write, or is `.` or `..`."""
    if out.name in ("", ".."):
        raise UsageError(f"--out {out}: name the folder itself, such as {out.resolve() / 'quality'}")
    if out.exists() and not (out / RESULTS).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} exists and was not written by this command: choose another folder")


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
