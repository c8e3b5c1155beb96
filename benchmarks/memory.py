"""Memory of the runtime's process, and the seconds until a path is open, on every backend of the CPU.

`python benchmarks/memory.py --bundle build/mini` starts a process of its own for each path and backend, which opens the
path (`Restorer.warmup`) and then restores images as `python -m dod_runtime` does, from file to file; sampled is what
it holds, its own memory and its share of what it maps (PSS). Looking through its maps slows it down, so the seconds
until a path is open are those of a second process, which is left alone. They begin with the process: imports, hashing,
reading, merging and compiling what the path needs, of files that the system has in its cache.
"""

from __future__ import annotations

import json
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

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import psutil
from PIL import Image

from benchmarks.latency import BUNDLE, IMAGE, chosen_paths, chosen_sizes
from benchmarks.machine import facts, summary
from benchmarks.photographs import square
from dod_runtime.backends import ON_CPU, available_backends
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import Parser, run_command, table
from dod_runtime.errors import BackendError, UsageError, unknown
from export.memory import MemoryMeter

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
JSON = Path("build/memory.json")
PERIOD_SECONDS = 0.2
PROGRAM = """
import sys
from dod_runtime import Restorer

bundle, backend, path, size, *images = sys.argv[1:]
with Restorer(bundle, backend) as restorer:
    restorer.warmup(path, (int(size), int(size)))
    print("opened", flush=True)
    for image in images:
        restorer.restore(image, path).save(f"{image}.restored.png")
        print("restored", flush=True)
"""


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/memory.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="default: %(default)s")
    made.add_argument("--size", type=int, nargs="+", help="sides of the square image (default: the bundle's usual)")
    made.add_argument("--conditions", nargs="+", help="paths to measure (default: auto and all of the bundle's)")
    made.add_argument("--backends", nargs="+", help="of the CPU (default: all that can run here)")
    made.add_argument("--images", type=int, default=2, help="to restore, 0 for the opening alone (default: 2)")
    made.add_argument("--image", type=Path, default=IMAGE, help="its middle square is resized (a sample of docs/)")
    made.add_argument("--json", type=Path, default=JSON, help="default: %(default)s")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    arguments = parser().parse_args(argv)
    if arguments.images < 0:
        raise UsageError(f"--images must be at least 0, not {arguments.images}")
    bundle = Bundle.open(arguments.bundle)
    paths, sizes, backends = chosen_paths(bundle, arguments.conditions), arguments.size, _backends(bundle, arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in chosen_sizes(bundle, sizes):
            images = [Path(folder) / f"{size}-{i}.png" for i in range(arguments.images)]
            for image in images:
                Image.fromarray(square(arguments.image, size)).save(image)
            for backend in backends:
                for path in paths:
                    row = measure(images, size, arguments.bundle, path, backend)
                    rows.append({"size": size, "backend": backend, "path": path, **row})
    machine = facts()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", "utf-8")
    print(summary(machine))
    print(
        table(
            ["size", "backend", "path", "opening s", "GB until then", "images s", "peak GB"],
            [
                [
                    r["size"],
                    r["backend"],
                    r["path"],
                    f"{r['opening_seconds']:.1f}",
                    f"{r['opening_bytes'] / 1e9:.2f}",
                    ", ".join(f"{seconds:.1f}" for seconds in r["image_seconds"]) or "-",
                    f"{r['bytes'] / 1e9:.2f}",
                ]
                for r in rows
            ],
            "rllrrrr",
        )
    )
    return 0


def measure(images: Sequence[Path], size: int, bundle: Path, path: str, backend: str) -> dict[str, Any]:
    """What a process takes that opens a path and restores images of `size` px, by this process's clock: seconds until
    it is open, peak bytes until then, seconds of each image, and its peak. Raises BackendError where it fails."""
    command = [sys.executable, "-c", PROGRAM, bundle.resolve(), backend, path, size]
    moments = _followed([*command, *images], True)
    return {
        "opening_seconds": _followed(command, False)[0][0],
        "opening_bytes": moments[0][1],
        "image_seconds": [after[0] - before[0] for before, after in pairwise(moments[:-1])],
        "bytes": moments[-1][1],
    }


def _followed(command: Sequence[object], sampled: bool) -> list[tuple[float, int]]:
    """The seconds since its start, and the peak bytes of its memory, at each line that a process prints and at its end.
    sampled: whether its memory is looked at (else 0)."""
    start, moments = time.perf_counter(), []
    with (
        tempfile.TemporaryFile("w+") as told,
        psutil.Popen([*map(str, command)], cwd=RUNTIME, stdout=subprocess.PIPE, stderr=told, text=True) as process,
        MemoryMeter(process, PERIOD_SECONDS) if sampled else nullcontext() as meter,
    ):
        for _ in process.stdout:
            moments.append((time.perf_counter() - start, meter.peak if meter else 0))
        if process.wait():
            told.seek(0)
            lines = told.read().strip().splitlines()
            backend, path = command[4:6]
            raise BackendError(f"{backend} failed on {path}: {lines[-1] if lines else process.returncode}")
    return [*moments, (time.perf_counter() - start, meter.peak if meter else 0)]


def _backends(bundle: Bundle, arguments: Namespace) -> list[str]:
    able = [name for name, reason in available_backends(bundle).items() if name in ON_CPU and reason is None]
    for name in arguments.backends or ():
        if name not in ON_CPU:
            raise unknown("backend of the CPU", name, ON_CPU)
        if name not in able:
            raise UsageError(f"{name} cannot run here: {available_backends(bundle)[name]}")
    return arguments.backends or able


if __name__ == "__main__":
    sys.exit(run_command(main))
