"""Latency: PyTorch eager beside every backend that can run here, with the proof that they compute the same.

`python benchmarks/latency.py --bundle build/mini` prints one table and writes one JSON file. Each row is one model on
one path (`auto`, or a condition whose UNet is merged): its components and the whole image, warm, in milliseconds.
Models take turns, run by run. A row that misses its parity budget shows no speed-up, and the exit code is 1.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.latency_report import Setting, Switch, print_report
from benchmarks.machine import facts
from benchmarks.photographs import square
from benchmarks.runners import Job
from benchmarks.timing import Turns
from dod.errors import DODError
from dod_runtime.backends import ON_CPU, available_backends, check_precision
from dod_runtime.backends.base import BackendOptions, kept_sessions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import REFITTED
from dod_runtime.console import Parser, run_command
from dod_runtime.errors import BackendError, UsageError, unknown
from dod_runtime.image.geometry import padded_size
from dod_runtime.restorer import Restorer
from export.errors import ExportError

if TYPE_CHECKING:
    from benchmarks.comparison import Row
    from benchmarks.reference import TorchModel

BUNDLE = Path("build/mini")
IMAGE = Path(__file__).parents[1] / "docs" / "samples" / "noise.png"
JSON = Path("build/latency.json")
SWITCHES = 3
TURNS = Turns(seconds=60, warmup=1, runs=None, least=5)
NEEDS_TORCH = "the PyTorch reference cannot be loaded ({}): pip install -e '.[export]'"


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/latency.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="default: %(default)s")
    made.add_argument("--size", type=int, nargs="+", help="sides of the square image (default: the bundle's usual one)")
    made.add_argument("--batch", type=int, default=1, help="images restored together (default: %(default)s)")
    made.add_argument("--conditions", nargs="+", help="paths to measure (default: auto and all of the bundle's)")
    made.add_argument("--backends", nargs="+", help="default: all that can run here; CPU only where no GPU backend can")
    made.add_argument("--precision", nargs="+", default=["auto"], help="auto (each backend's best), fp32, fp16, bf16")
    made.add_argument("--torch", nargs="+", choices=("fp32", "fp16"), help="PyTorch rows (fp32; on a GPU fp16 too)")
    made.add_argument("--checkpoint", help="the PyTorch reference, where not the one that the bundle names")
    made.add_argument("--base", help="its frozen base, where it is not where the preset says")
    made.add_argument("--ddpm", help="its frozen DDPM, likewise")
    made.add_argument(
        "--seconds", type=float, default=TURNS.seconds, help="to measure each size (default: %(default)s)"
    )
    made.add_argument("--runs", type=int, help="rounds to measure, in place of --seconds")
    made.add_argument("--warmup", type=float, default=TURNS.warmup, help="seconds before it (default: %(default)s)")
    made.add_argument(
        "--num-threads", type=int, help="of the CPU, for PyTorch and backends (default: PyTorch's choice)"
    )
    made.add_argument("--device", type=int, default=0, help="the index of the GPU (default: 0)")
    made.add_argument("--image", type=Path, default=IMAGE, help="its middle square is resized (a sample of docs/)")
    made.add_argument("--json", type=Path, default=JSON, help="default: %(default)s")
    made.add_argument("--markdown", type=Path, help="write the table as Markdown too")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command: 1 where a parity budget was missed."""
    arguments = parser().parse_args(argv)
    check_positive(arguments)
    bundle = Bundle.open(arguments.bundle)
    paths = chosen_paths(bundle, arguments.conditions)
    images = [square(arguments.image, size) for size in chosen_sizes(bundle, arguments.size)]
    turns = Turns(arguments.seconds, arguments.warmup, arguments.runs, TURNS.least)
    machine = facts(arguments.device)  # its load before this command adds to it
    rows: list[Row] = []
    with ExitStack() as stack:
        threads = set_threads(arguments.num_threads)
        restorers, not_run = open_backends(bundle, arguments, threads)
        for restorer in restorers:
            stack.callback(restorer.close)
        models = torch_models(bundle, restorers, arguments)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        from benchmarks.comparison import compare

        for pixels in images:
            jobs = [Job(pixels, arguments.batch, path) for path in paths]
            rows += compare(restorers, models, jobs, turns, merged_at_once(bundle, restorers))
        merged = [path for path in paths if path != "auto"]
        able = [restorer for restorer in restorers if refits(restorer) and len(merged) > 1]
        switches = [switched(restorer, merged, images[0]) for restorer in able]
    setting = Setting(machine, threads, str(arguments.image), bundle, not_run, switches)
    print_report(rows, setting, arguments.json, arguments.markdown)
    return 1 if any(row.passed is False for row in rows) or any(not each.same for each in switches) else 0


def check_positive(arguments: Namespace) -> None:
    """Raises UsageError for a number that must be more than 0 and is not."""
    for name in ("size", "batch", "runs", "threads", "seconds"):
        value = getattr(arguments, name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None and not each > 0:
                raise UsageError(f"--{name} must be more than 0, not {each:g}")


def chosen_sizes(bundle: Bundle, sizes: Sequence[int] | None) -> list[int]:
    """The sides of the image, each once. Raises ImageError for one that the bundle does not take."""
    least, usual, largest = bundle.manifest.profile.size
    for size in sizes or ():
        padded_size(size, bundle.manifest.size_multiple, least, largest)
    return list(dict.fromkeys(sizes or [usual]))


def chosen_paths(bundle: Bundle, names: Sequence[str] | None) -> list[str]:
    """The paths to measure, each once. Raises UsageError for one that the bundle does not have."""
    valid = ("auto", *bundle.manifest.conditions)
    for name in names or ():
        if name not in valid:
            raise unknown("condition", name, valid)
    return list(dict.fromkeys(names or valid))


def set_threads(asked: int | None) -> int:
    """Gives PyTorch the threads of the CPU that the backends get too, and returns their number."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(NEEDS_TORCH.format(error)) from error
    if asked:
        torch.set_num_threads(asked)
    return torch.get_num_threads()


def open_backends(bundle: Bundle, arguments: Namespace, threads: int) -> tuple[list[Restorer], dict[str, str]]:
    """Every backend that is asked for, in each precision, and why others are not run.

    Raises BackendError where one that was named cannot run here, or where none can, and UsageError for a wrong name.
    """
    largest = bundle.manifest.profile.batch[2]
    if arguments.batch > largest:
        raise UsageError(
            f"--batch {arguments.batch}: this bundle takes at most {largest}; rebuild it with a larger one"
        )
    if arguments.backends:
        pairs = dict.fromkeys((name, precision) for precision in arguments.precision for name in arguments.backends)
        return [
            Restorer(bundle, name, device=arguments.device, precision=precision, num_threads=threads)
            for name, precision in pairs
        ], {}
    restorers: list[Restorer] = []
    not_run: dict[str, str] = {}
    for precision in dict.fromkeys(arguments.precision):
        check_precision(precision, bundle)
        for name, reason in available_backends(bundle, BackendOptions(arguments.device, precision, threads)).items():
            if reason is None and name in ON_CPU and any(on_gpu(each) for each in restorers):
                reason = "a GPU backend can run here; to measure this one too, name both with --backends"
            try:
                if reason is None:
                    restorers.append(
                        Restorer(bundle, name, device=arguments.device, precision=precision, num_threads=threads)
                    )
            except BackendError as error:
                reason = str(error)
            if reason is not None:
                not_run[name if len(arguments.precision) == 1 else f"{name} {precision}"] = reason
    if not restorers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise BackendError(f"no backend can run this bundle here: {reasons}")
    return restorers, not_run


def on_gpu(restorer: Restorer) -> bool:
    """Whether a restorer computes on a GPU."""
    return restorer.backend not in ON_CPU


def torch_models(bundle: Bundle, restorers: Sequence[Restorer], arguments: Namespace) -> list[TorchModel]:
    """PyTorch on each device that a backend runs on; the first is in float32, and the one that all are judged by."""
    try:
        import torch

        from benchmarks.reference import TorchModel, load_reference
    except ImportError as error:
        raise UsageError(NEEDS_TORCH.format(error)) from error
    devices = {"cuda" if on_gpu(each) and torch.cuda.is_available() else "cpu" for each in restorers}
    if "cuda" in devices:
        torch.cuda.set_device(arguments.device)
    model = load_reference(bundle, arguments.checkpoint, arguments.base, arguments.ddpm)
    fp16 = bundle.manifest.precisions.get("fp16")
    fp32_modules = fp16.fp32_modules if fp16 else None
    made = []
    for device in sorted(devices):
        wanted = arguments.torch or (("fp32",) if device == "cpu" else ("fp32", "fp16"))
        made += [TorchModel(model, device, precision, fp32_modules) for precision in dict.fromkeys(("fp32", *wanted))]
    return made


def refits(restorer: Restorer) -> bool:
    """Whether a restorer exchanges the weights of one engine where another condition is asked for."""
    target = restorer.bundle.manifest.targets.get(restorer.backend)
    return target is not None and REFITTED in target.engines


def switched(restorer: Restorer, conditions: Sequence[str], pixels: np.ndarray) -> Switch:
    """The seconds of exchanging the weights, and whether coming back to one of several conditions gives the same
    image."""
    seconds: list[float] = []
    images: dict[str, np.ndarray] = {}
    same = True
    for visit in range(1 + SWITCHES):
        for condition in conditions:
            start = time.perf_counter()
            restorer.warmup(condition, pixels.shape[:2])
            seconds.append(time.perf_counter() - start)
            found = np.asarray(restorer.restore(pixels, condition))
            if visit:  # in the first the kernels of this shape may still be compiled
                same = same and np.array_equal(images.setdefault(condition, found), found)
    return Switch(restorer.backend, restorer.precision, seconds[len(conditions) :], same)


def merged_at_once(bundle: Bundle, restorers: Sequence[Restorer]) -> int:
    """How many merged UNets a backend keeps loaded: with more, some would be loaded anew between two runs."""
    if any(map(refits, restorers)):
        return 1
    manifest = bundle.manifest
    sizes = [manifest.files[each.weights["unet_merged"]].bytes for each in manifest.precisions.values()]
    return kept_sessions(max(sizes))


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError, ExportError)))
