"""Memory: peak memory of a runtime process, and its time until a condition path is open, on the CPU backends.

`python benchmarks/memory.py --bundle build/mini` starts one process for each path and backend. It opens the path
(`Restorer.warmup`) and restores images from file to file, while its memory is sampled: private memory and its share of
mapped memory (PSS). Sampling slows a process down, so opening times come from a second process without it. They start
with the process: imports, hashing, reading, merging and compiling, with the files in the system's cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout's root and runtime/, not from this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import psutil
from PIL import Image

from benchmarks.common_options import add_bundle, add_image, benchmark_parser, check_at_least_one
from benchmarks.json_file import write_json
from benchmarks.latency import chosen_paths, chosen_sizes
from benchmarks.machine import machine_info, machine_summary
from benchmarks.photographs import load_square
from dod_runtime.backends import ON_CPU, available_backends
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import Parser, run_command, table
from dod_runtime.errors import BackendError, UsageError, unknown
from export.memory import MemoryMeter

__all__ = ["main", "measure_process", "parser"]

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
JSON = Path("build/memory.json")
NUM_IMAGES = 2
PERIOD_SECONDS = 0.2
"""Time between two samples of the memory in seconds."""
PROGRAM = """
import sys
from dod_runtime import Restorer

bundle, backend, path, size, *images = sys.argv[1:]
with Restorer(bundle, backend=backend) as restorer:
    restorer.warmup(path, size=(int(size), int(size)))
    print("opened", flush=True)
    for image in images:
        restorer.restore(image, condition=path).save(f"{image}.restored.png")
        print("restored", flush=True)
"""
"""Program of the measured process: prints one line when the path is open and one for each image."""


def parser() -> Parser:
    """Return the command's parser."""
    made = benchmark_parser("memory", __doc__ or "")
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
        "--num-images",
        type=int,
        default=NUM_IMAGES,
        metavar="N",
        help="number of images to restore, 0 to measure opening only (default: %(default)s)",
    )
    inputs.add_argument("--images", dest="num_images", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    models = made.add_argument_group("models")
    models.add_argument(
        "--conditions",
        nargs="+",
        metavar="NAME",
        help="condition paths to measure, auto or conditions (default: all of the bundle)",
    )
    models.add_argument(
        "--backends", nargs="+", metavar="NAME", help="CPU backends to measure (default: all that can run here)"
    )
    output = made.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, default=JSON, metavar="FILE", help="JSON file for all results (default: %(default)s)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        Exit code 0.

    Raises:
        UsageError: an argument is invalid.
        BackendError: a process fails.
    """
    arguments = parser().parse_args(argv)
    check_at_least_one(arguments, "size")
    if arguments.num_images < 0:
        raise UsageError(f"--num-images must be at least 0, not {arguments.num_images}")
    bundle = Bundle.open(arguments.bundle)
    paths, backends = chosen_paths(bundle, arguments.conditions), _chosen_backends(bundle, arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in chosen_sizes(bundle, arguments.size):
            images = [Path(folder) / f"{size}-{i}.png" for i in range(arguments.num_images)]
            for image in images:
                Image.fromarray(load_square(arguments.image, size)).save(image)
            for backend in backends:
                for path in paths:
                    measured = measure_process(images, size, arguments.bundle, path, backend)
                    rows.append({"size": size, "backend": backend, "path": path, **measured})
    machine = machine_info()
    write_json(arguments.json, {"machine": machine, "results": rows})
    print(machine_summary(machine))
    headers = ["size", "backend", "path", "opening s", "GB until open", "images s", "peak GB"]
    print(table(headers, [_cells(row) for row in rows], "rllrrrr"))
    return 0


def _cells(row: dict[str, Any]) -> list[object]:
    return [
        row["size"],
        row["backend"],
        row["path"],
        f"{row['opening_seconds']:.1f}",
        f"{row['opening_bytes'] / 1e9:.2f}",
        ", ".join(f"{seconds:.1f}" for seconds in row["image_seconds"]) or "-",
        f"{row['bytes'] / 1e9:.2f}",
    ]


def measure_process(images: Sequence[Path], size: int, bundle: Path, path: str, backend: str) -> dict[str, Any]:
    """Measure a process that opens a condition path and restores images.

    Args:
        images: image files to restore.
        size: side of the images in pixels.
        bundle: folder of the bundle.
        path: condition path.
        backend: backend of the runtime.

    Returns:
        `opening_seconds` and `opening_bytes` (peak) until the path is open, `image_seconds` of each image, and `bytes`,
        the peak of the whole process. Seconds are those of this process's clock.

    Raises:
        BackendError: the process fails.
    """
    command = [sys.executable, "-c", PROGRAM, bundle.resolve(), backend, path, size]
    moments = _follow([*command, *images], sampled=True)
    return {
        "opening_seconds": _follow(command, sampled=False)[0][0],
        "opening_bytes": moments[0][1],
        "image_seconds": [after[0] - before[0] for before, after in pairwise(moments[:-1])],
        "bytes": moments[-1][1],
    }


def _follow(command: Sequence[object], sampled: bool) -> list[tuple[float, int]]:
    """Run a process; return seconds since its start and peak bytes at each line that it prints and at its end.

    Bytes are 0 without `sampled`.
    """
    start, moments = time.perf_counter(), []
    with (
        tempfile.TemporaryFile("w+") as errors,
        psutil.Popen([*map(str, command)], cwd=RUNTIME, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        MemoryMeter(process, PERIOD_SECONDS) if sampled else nullcontext() as meter,
    ):
        for _ in process.stdout:
            moments.append((time.perf_counter() - start, meter.peak if meter else 0))
        if process.wait():
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            backend, path = command[4:6]
            raise BackendError(f"{backend} failed on {path}: {lines[-1] if lines else process.returncode}")
    return [*moments, (time.perf_counter() - start, meter.peak if meter else 0)]


def _chosen_backends(bundle: Bundle, arguments: Namespace) -> list[str]:
    reasons = available_backends(bundle)
    able = [name for name, reason in reasons.items() if name in ON_CPU and reason is None]
    for name in arguments.backends or ():
        if name not in ON_CPU:
            raise unknown("CPU backend", name, ON_CPU)
        if name not in able:
            raise UsageError(f"{name} cannot run here: {reasons[name]}")
    return arguments.backends or able


if __name__ == "__main__":
    sys.exit(run_command(main))
