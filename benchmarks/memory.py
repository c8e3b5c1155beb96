"""Memory of the runtime's process, and the seconds until a path is open, on every backend of the CPU.

`python benchmarks/memory.py --bundle build/mini` starts `python -m runtime` for each path and backend, once on a folder
of one picture and once on one of two, and samples what it holds: its own memory and its share of what it maps (PSS).
What the second picture adds is the time of a picture; what the first takes beyond that is the opening: start, imports,
hashing, reading, merging and compiling what the path needs. It is as sure as two pictures are equally fast.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's root, not this folder, is where imports start
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import psutil
from PIL import Image

from benchmarks.latency import BUNDLE, PICTURE, chosen_paths, chosen_sizes
from benchmarks.machine import facts, summary
from benchmarks.photographs import square
from export.memory import MemoryMeter
from runtime.backends import ON_CPU, survey
from runtime.bundle import Bundle
from runtime.console import Parser, run_command, table
from runtime.errors import BackendError, UsageError, unknown

ROOT = Path(__file__).resolve().parents[1]
JSON = Path("build/memory.json")
PERIOD_SECONDS = 0.2


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/memory.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="default: %(default)s")
    made.add_argument("--size", type=int, nargs="+", help="sides of the square picture (default: the bundle's usual)")
    made.add_argument("--conditions", nargs="+", help="paths to measure (default: auto and all of the bundle's)")
    made.add_argument("--backends", nargs="+", help="of the CPU (default: all that can run here)")
    made.add_argument("--picture", type=Path, default=PICTURE, help="its middle square is resized (a sample of docs/)")
    made.add_argument("--json", type=Path, default=JSON, help="default: %(default)s")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    arguments = parser().parse_args(argv)
    bundle = Bundle.open(arguments.bundle)
    paths, sizes, backends = chosen_paths(bundle, arguments.conditions), arguments.size, _backends(bundle, arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in chosen_sizes(bundle, sizes):
            one, two = (
                _folder(Path(folder) / f"{size}-{count}", square(arguments.picture, size), count) for count in (1, 2)
            )
            for backend in backends:
                for path in paths:
                    first, both = (measure(each, arguments.bundle, path, backend) for each in (one, two))
                    picture = both[0] - first[0]
                    row = {"size": size, "backend": backend, "path": path, "bytes": first[1], "bytes_of_two": both[1]}
                    rows.append({**row, "opening_seconds": first[0] - picture, "picture_seconds": picture})
    machine = facts()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", "utf-8")
    print(summary(machine))
    print(
        table(
            ["size", "backend", "path", "peak GB", "of two pictures", "opening s", "a picture s"],
            [
                [
                    r["size"],
                    r["backend"],
                    r["path"],
                    f"{r['bytes'] / 1e9:.2f}",
                    f"{r['bytes_of_two'] / 1e9:.2f}",
                    f"{r['opening_seconds']:.1f}",
                    f"{r['picture_seconds']:.1f}",
                ]
                for r in rows
            ],
            "rllrrrr",
        )
    )
    return 0


def measure(pictures: Path, bundle: Path, path: str, backend: str) -> tuple[float, int]:
    """Seconds and peak bytes of one process that restores a folder. Raises BackendError where it fails."""
    options = ["--bundle", str(bundle.resolve()), "--condition", path, "--backend", backend]
    command = [sys.executable, "-m", "runtime", str(pictures), f"{pictures}-restored", *options]
    start = time.perf_counter()
    with (
        psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        MemoryMeter(process, PERIOD_SECONDS) as meter,
    ):
        _, told = process.communicate()
    if process.returncode:
        raise BackendError(f"{backend} failed on {path}: {told.strip() or process.returncode}")
    return time.perf_counter() - start, meter.peak


def _folder(folder: Path, pixels: np.ndarray, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def _backends(bundle: Bundle, arguments: Namespace) -> list[str]:
    able = [name for name, reason in survey(bundle).items() if name in ON_CPU and reason is None]
    for name in arguments.backends or ():
        if name not in ON_CPU:
            raise unknown("backend of the CPU", name, ON_CPU)
        if name not in able:
            raise UsageError(f"{name} cannot run here: {survey(bundle)[name]}")
    return arguments.backends or able


if __name__ == "__main__":
    sys.exit(run_command(main))
