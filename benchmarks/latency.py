"""Latency of PyTorch eager and of every backend that can run here, with parity checks of their outputs.

`python benchmarks/latency.py --bundle build/mini` prints one table and writes one JSON file. Each row is one model on
one condition path (`auto`, or a condition whose UNet is merged): warm milliseconds of its components and of the whole
image. Models run in turn. A row below its parity threshold has no speed-up, and the exit code is 1.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a script: import from the checkout's root and runtime/, not from this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

from benchmarks.common_options import add_bundle, add_image, benchmark_parser, check_at_least_one
from benchmarks.latency_models import open_backends, paths_at_once, refits, set_threads, time_refits, torch_models
from benchmarks.latency_report import LatencySetting, print_report
from benchmarks.machine import machine_info
from benchmarks.photographs import load_square
from benchmarks.runners import Job
from benchmarks.timing import Rounds
from dod.errors import DODError
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import Parser, run_command
from dod_runtime.errors import UsageError, unknown
from dod_runtime.image.geometry import padded_size
from export.errors import ExportError

if TYPE_CHECKING:
    from benchmarks.comparison import LatencyResult

__all__ = ["chosen_paths", "chosen_sizes", "main", "parser"]

JSON = Path("build/latency.json")
ROUNDS = Rounds(seconds=60, warmup=1, runs=None, min_rounds=5)


def parser() -> Parser:
    """Return the command's parser."""
    made = benchmark_parser("latency", __doc__ or "")
    inputs = made.add_argument_group("input")
    add_bundle(inputs)
    add_image(inputs)
    inputs.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="sides of the square image in pixels (default: the size the bundle is optimized for)",
    )
    inputs.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="number of images restored together (default: %(default)s)",
    )
    models = made.add_argument_group("models")
    models.add_argument(
        "--conditions",
        nargs="+",
        metavar="NAME",
        help="condition paths to measure, auto or conditions (default: all of the bundle)",
    )
    models.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help="backends to measure (default: all that can run here; those of the CPU only if no GPU backend can)",
    )
    models.add_argument(
        "--precision",
        nargs="+",
        default=["auto"],
        metavar="NAME",
        help="precisions to measure: fp32, fp16, bf16, or auto for the best of each backend (default: auto)",
    )
    models.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default: %(default)s)")
    models.add_argument(
        "--num-threads", type=int, metavar="N", help="number of CPU threads of all models (default: PyTorch's choice)"
    )
    reference = made.add_argument_group("PyTorch reference")
    reference.add_argument(
        "--torch",
        nargs="+",
        choices=("fp32", "fp16"),
        metavar="PRECISION",
        help="precisions of PyTorch to measure (default: fp32; on a GPU also fp16)",
    )
    reference.add_argument(
        "--checkpoint",
        metavar="NAME_OR_FOLDER",
        help="checkpoint folder, or name or folder of a preset, of the reference (default: the bundle's)",
    )
    reference.add_argument(
        "--base", metavar="FOLDER", help="folder of the frozen Stable Diffusion base (default: the preset's)"
    )
    reference.add_argument("--ddpm", metavar="FOLDER", help="folder of the frozen DDPM (default: the preset's)")
    measurement = made.add_argument_group("measurement")
    measurement.add_argument(
        "--seconds",
        type=float,
        default=ROUNDS.seconds,
        metavar="SECONDS",
        help="time to measure each size in seconds, shared by the models of a device and their condition paths "
        "(default: %(default)g)",
    )
    measurement.add_argument(
        "--runs", type=int, metavar="N", help="number of runs, instead of --seconds (default: off)"
    )
    measurement.add_argument(
        "--warmup",
        type=float,
        default=ROUNDS.warmup,
        metavar="SECONDS",
        help="time of runs that do not count, in seconds (default: %(default)g)",
    )
    output = made.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, default=JSON, metavar="FILE", help="JSON file for all results (default: %(default)s)"
    )
    output.add_argument(
        "--markdown", type=Path, metavar="FILE", help="file for the table as Markdown (default: not written)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        Exit code: 0, or 1 if a result is below its parity threshold or a refit changes an image.

    Raises:
        UsageError: an argument is invalid, or PyTorch is missing.
        BackendError: a backend named by `--backends` cannot run here, or none can.
    """
    arguments = parser().parse_args(argv)
    check_numbers(arguments)
    bundle = Bundle.open(arguments.bundle)
    paths = chosen_paths(bundle, arguments.conditions)
    images = [load_square(arguments.image, size) for size in chosen_sizes(bundle, arguments.size)]
    rounds = Rounds(arguments.seconds, arguments.warmup, arguments.runs, ROUNDS.min_rounds)
    machine = machine_info(arguments.device)  # now, before this command adds to the load average
    results: list[LatencyResult] = []
    with ExitStack() as stack:
        num_threads = set_threads(arguments.num_threads)
        restorers, not_run = open_backends(bundle, arguments, num_threads)
        for restorer in restorers:
            stack.callback(restorer.close)
        models = torch_models(bundle, restorers, arguments)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail before the measurement, not after it
        from benchmarks.comparison import compare_models

        for pixels in images:
            jobs = [Job(pixels, arguments.batch_size, path) for path in paths]
            results += compare_models(restorers, models, jobs, rounds, paths_at_once(bundle, restorers))
        merged = [path for path in paths if path != "auto"]
        refitted = [restorer for restorer in restorers if refits(restorer) and len(merged) > 1]
        refit_results = [time_refits(restorer, merged, images[0]) for restorer in refitted]
    setting = LatencySetting(machine, num_threads, str(arguments.image), bundle, not_run, refit_results)
    print_report(results, setting, arguments.json, arguments.markdown)
    failed = any(result.passed is False for result in results) or not all(each.same for each in refit_results)
    return 1 if failed else 0


def check_numbers(arguments: Namespace) -> None:
    """Raise UsageError for a number that is out of its range."""
    check_at_least_one(arguments, "size", "batch-size", "runs", "num-threads")
    if not arguments.seconds > 0:
        raise UsageError(f"--seconds must be more than 0, not {arguments.seconds:g}")


def chosen_sizes(bundle: Bundle, sizes: Sequence[int] | None) -> list[int]:
    """Return the sides of the image without duplicates.

    Args:
        bundle: bundle to measure.
        sizes: sides in pixels; None for the size that the bundle is optimized for.

    Returns:
        Sides in pixels.

    Raises:
        ImageError: the bundle cannot take a size.
    """
    smallest, usual, largest = bundle.manifest.profile.size
    for size in sizes or ():
        padded_size(size, bundle.manifest.size_multiple, smallest, largest)
    return list(dict.fromkeys(sizes or [usual]))


def chosen_paths(bundle: Bundle, names: Sequence[str] | None) -> list[str]:
    """Return the condition paths to measure without duplicates.

    Args:
        bundle: bundle to measure.
        names: condition paths; None for all of the bundle.

    Returns:
        Condition paths.

    Raises:
        UsageError: the bundle does not have a path.
    """
    valid = ("auto", *bundle.manifest.conditions)
    for name in names or ():
        if name not in valid:
            raise unknown("condition", name, valid)
    return list(dict.fromkeys(names or valid))


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError, ExportError)))
