"""Tiles: how far images that are restored in tiles are from the same images restored whole.

`python benchmarks/tiles.py --bundle build/mini` degrades photographs, crops them to what the bundle takes whole, and
prints for each degradation and tile size the PSNR of the tiled result against the whole one, what tiles cost in PSNR
against the clean photograph, and the largest step in tone across the borders of tiles. With `--time N` it measures how
much time the guide and the matching of tones add instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.photographs import OWN, photographs
from benchmarks.tasks import TASKS, Task, spoil
from dod.data.degradations import haze, rng_for
from dod.data.images import centre_crop
from dod.errors import DODError
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import Parser, progress, run_command, table
from dod_runtime.errors import UsageError
from dod_runtime.image.tiling import restore_tiles, tile_starts
from dod_runtime.restorer import Restorer

BUNDLE = Path("build/mini")
SIZE = (1024, 640)
STRIP = 4
"""Width in pixels of the strips on either side of a border whose means are compared."""
LENGTH = 32
"""Length in pixels of these strips along the border."""
FLAT = 4.0
"""Standard deviation in grey levels below which both strips together count as flat."""
GRADIENT = Task("haze-gradient", None)


@dataclass(frozen=True)
class Row:
    """One image restored in tiles of one size, in dB and grey levels. step: None where nothing at a border is flat."""

    task: str
    name: str
    tile: int
    against_whole: float
    cost: float
    step: float | None


def border_steps(tiled: np.ndarray, whole: np.ndarray, tile: int) -> np.ndarray:
    """Measure steps in tone across the borders of tiles, relative to the image restored whole.

    For each border and each `LENGTH` pixels along it where the whole image is flat (`FLAT`), the step is the difference
    of the means of `tiled - whole` in the strips of `STRIP` pixels on either side.

    Args:
        tiled: uint8 or float [H, W, 3] in grey levels, 0 to 255.
        whole: the same image restored whole.
        tile: side of the tiles in pixels.

    Returns:
        float64 [number of flat places], absolute values in grey levels.
    """
    expected = whole.astype(np.float64).mean(axis=2)
    error = tiled.astype(np.float64).mean(axis=2) - expected
    steps = []
    for one, other in ((expected, error), (expected.T, error.T)):
        starts = tile_starts(len(one), tile)
        borders = {*starts[1:], *(start + tile for start in starts[:-1])}
        for border in sorted(b for b in borders if STRIP <= b <= len(one) - STRIP):
            for along in range(0, one.shape[1] - LENGTH + 1, LENGTH):
                place = slice(along, along + LENGTH)
                if one[border - STRIP : border + STRIP, place].std() < FLAT:
                    before, after = other[border - STRIP : border, place], other[border : border + STRIP, place]
                    steps.append(abs(before.mean() - after.mean()))
    return np.array(steps)


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """The PSNR of uint8 images in dB; 99 where they are equal."""
    error = np.square(found.astype(np.float64) - expected).mean()
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def degraded(task: Task, name: str, truth: np.ndarray, seed: int) -> np.ndarray:
    """Degrade a photograph, uint8 [H, W, 3]; `GRADIENT` is haze that thickens from left to right."""
    if task is not GRADIENT:
        return spoil(task, name, truth, seed)[0]
    depth = np.broadcast_to(np.linspace(0, 1.3, truth.shape[1], dtype=np.float32), truth.shape[:2])
    clean = truth.astype(np.float32) / np.float32(255)
    image, _ = haze(clean, rng_for(name, "haze", seed), beta=1.5, airlight=0.9, depth=depth)
    return np.rint(image * 255).astype(np.uint8)


def added_time(restorer: Restorer, image: np.ndarray, tile: int, runs: int) -> float:
    """Measure the time that the guide and the matching of tones add to tiles.

    Tiles with and without them are restored in turns, `runs` times after one run each that does not count.

    Args:
        restorer: opened with `tile`.
        image: uint8 [H, W, 3], larger than a tile.
        tile: side of the tiles in pixels.
        runs: number of measured runs, at least 1.

    Returns:
        The ratio of the medians, minus 1.
    """
    prepared = restorer.prepare(image, "haze")
    images = prepared.image[None]
    decisions = restorer.decide(1, None if prepared.crops is None else prepared.crops[None], "haze")

    def restore(part: np.ndarray) -> np.ndarray:
        return restorer.run_components(part, None, "haze", decisions=decisions)

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(runs + 1):
        for guided, measured in seconds.items():
            start = time.perf_counter()
            restore_tiles(images, tile, restore, restorer.guide(images, restore) if guided else None)
            measured.append(time.perf_counter() - start)
    return float(np.median(seconds[True][1:]) / np.median(seconds[False][1:])) - 1


def parser() -> Parser:
    """Return the command's arguments."""
    made = Parser(prog="python benchmarks/tiles.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="bundle to measure (default: %(default)s)")
    made.add_argument(
        "--whole",
        type=Path,
        metavar="BUNDLE",
        help="bundle that restores the images whole, where they are larger than --bundle takes (default: --bundle)",
    )
    made.add_argument(
        "--photographs", nargs="+", default=[OWN], metavar="FOLDER", help="clean photographs (default: %(default)s)"
    )
    made.add_argument("--limit", type=int, help="number of photographs of each folder (default: all)")
    made.add_argument(
        "--size", type=int, nargs=2, default=SIZE, metavar=("W", "H"), help="crop in pixels (default: %(default)s)"
    )
    made.add_argument(
        "--tile-size", type=int, nargs="+", default=[256, 512], help="sides of tiles in pixels (default: %(default)s)"
    )
    made.add_argument(
        "--condition",
        default="matching",
        help="condition path, or matching: the one of each degradation (default: %(default)s)",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of the degradations (default: %(default)s)")
    made.add_argument(
        "--time", type=int, metavar="N", help="measure the time that the guide adds in N runs, on the path haze"
    )
    made.add_argument("--backend", default="auto", help="backend of the runtime (default: %(default)s)")
    made.add_argument("--num-threads", type=int, help="number of CPU threads (default: all cores)")
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    width, height = arguments.size
    bundle = Bundle.open(arguments.bundle)
    if arguments.time is not None:
        if arguments.time < 1:
            raise UsageError(f"--time {arguments.time}: it must be at least 1")
        pixels = next(iter(photographs(arguments.photographs, 1).values()))
        image = np.ascontiguousarray(centre_crop(pixels, max(width, height))[:height, :width])
        for tile in arguments.tile_size:
            with Restorer(bundle, arguments.backend, num_threads=arguments.num_threads, tile_size=tile) as restorer:
                added = added_time(restorer, image, tile, arguments.time)
            print(f"{image.shape[1]} x {image.shape[0]} in tiles of {tile}: the guide adds {added:.1%} of time")
        return 0
    reference = bundle if arguments.whole is None else Bundle.open(arguments.whole)
    limit = reference.manifest.profile.size[2]
    if max(arguments.size) > limit:
        raise UsageError(f"--size {width} {height}: {reference.folder} restores at most {limit} whole; name --whole")
    tasks = [GRADIENT, *(task for task in TASKS if task.name not in ("noise-15", "noise-50"))]
    work = [
        (task, name, np.ascontiguousarray(centre_crop(pixels, max(width, height))[:height, :width]))
        for name, pixels in photographs(arguments.photographs, arguments.limit).items()
        for task in tasks
    ]
    restorers = {
        tile: Restorer(bundle, arguments.backend, num_threads=arguments.num_threads, tile_size=tile)
        for tile in arguments.tile_size
    }
    restorers[None] = Restorer(reference, arguments.backend, num_threads=arguments.num_threads)
    rows: list[Row] = []
    for task, name, truth in progress(work, label="restoring"):
        kind = "haze" if task is GRADIENT else task.degradation
        condition = (kind or "auto") if arguments.condition == "matching" else arguments.condition
        image = degraded(task, name, truth, arguments.seed)
        results = {tile: np.asarray(restorer.restore(image, condition)) for tile, restorer in restorers.items()}
        whole = results.pop(None)
        for tile, tiled in results.items():
            if tile is None or max(truth.shape[:2]) <= tile:
                continue
            steps, cost = border_steps(tiled, whole, tile), psnr(whole, truth) - psnr(tiled, truth)
            step = float(steps.max()) if len(steps) else None
            rows.append(Row(task.name, name, tile, psnr(tiled, whole), cost, step))
    print_rows(rows)
    return 0


def print_rows(rows: Sequence[Row]) -> None:
    """Print a line for each degradation and tile size: means, and the largest step."""
    lines: list[list[object]] = []
    for task, tile in dict.fromkeys((row.task, row.tile) for row in rows):
        some = [row for row in rows if (row.task, row.tile) == (task, tile)]
        close, cost = (round(float(np.mean([getattr(row, of) for row in some])), 2) for of in ("against_whole", "cost"))
        step = max((row.step for row in some if row.step is not None), default=None)
        lines.append([task, tile, len(some), close, cost, None if step is None else round(step, 1)])
    print(table(["degradation", "tile", "images", "dB to whole", "dB lost", "largest step"], lines))


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
