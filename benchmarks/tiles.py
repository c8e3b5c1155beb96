"""Tiles: compare images restored in tiles with the same images restored whole.

`python benchmarks/tiles.py --bundle build/mini` degrades photographs, crops them to a size that the bundle takes whole,
and prints for each degradation and tile size: PSNR of the tiled result against the whole one, loss of PSNR against the
clean photograph, and the largest step in tone across the borders of tiles. `--time N` measures the time that the guide
and tone matching add instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: import from the checkout's root and runtime/, not from this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.common_options import (
    add_bundle,
    add_photographs,
    add_runtime,
    benchmark_parser,
    check_at_least_one,
)
from benchmarks.degradation_cases import CASES, DegradationCase, degrade_photograph
from benchmarks.photographs import load_photographs
from dod.data.degradations import haze, rng_for
from dod.data.images import centre_crop
from dod.errors import DODError
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import Parser, progress, run_command, table
from dod_runtime.errors import UsageError
from dod_runtime.image.tiling import restore_tiles, tile_starts
from dod_runtime.restorer import Restorer

__all__ = ["main", "parser"]

SIZE = (1024, 640)
"""Default width and height of the images in pixels."""
TILE_SIZES = (256, 512)
"""Default sides of the tiles in pixels."""
STRIP = 4
"""Width in pixels of the strips on either side of a border whose means are compared."""
LENGTH = 32
"""Length in pixels of these strips along the border."""
FLAT = 4.0
"""Standard deviation in gray levels below which both strips together count as flat."""
GRADIENT = DegradationCase("haze-gradient", None)
"""Haze that thickens from left to right, so that each tile has another amount of it."""
EQUAL_DB = 99.0
"""PSNR in dB that stands for equal images."""


@dataclass(frozen=True)
class TileResult:
    """One image restored in tiles of one size.

    Attributes:
        case: name of the degradation case.
        name: name of the photograph.
        tile_size: side of the tiles in pixels.
        psnr_to_whole: PSNR of the tiled result against the image restored whole, in dB.
        loss: PSNR of the whole result minus PSNR of the tiled result, both against the clean photograph, in dB.
        step: largest step in tone across a border in gray levels; None if no border is flat anywhere.
    """

    case: str
    name: str
    tile_size: int
    psnr_to_whole: float
    loss: float
    step: float | None


def border_steps(tiled: np.ndarray, whole: np.ndarray, tile_size: int) -> np.ndarray:
    """Measure steps in tone across the borders of tiles, relative to the image restored whole.

    For each border and each `LENGTH` pixels along it where the whole image is flat (`FLAT`), the step is the difference
    of the means of `tiled - whole` in the strips of `STRIP` pixels on either side.

    Args:
        tiled: uint8 or float [H, W, 3] in gray levels, 0 to 255.
        whole: the same image restored whole.
        tile_size: side of the tiles in pixels.

    Returns:
        float64 [number of flat places], absolute values in gray levels.
    """
    expected = whole.astype(np.float64).mean(axis=2)
    error = tiled.astype(np.float64).mean(axis=2) - expected
    steps = []
    for one, other in ((expected, error), (expected.T, error.T)):
        starts = tile_starts(len(one), tile_size)
        borders = {*starts[1:], *(start + tile_size for start in starts[:-1])}
        for border in sorted(b for b in borders if STRIP <= b <= len(one) - STRIP):
            for along in range(0, one.shape[1] - LENGTH + 1, LENGTH):
                place = slice(along, along + LENGTH)
                if one[border - STRIP : border + STRIP, place].std() < FLAT:
                    before, after = other[border - STRIP : border, place], other[border : border + STRIP, place]
                    steps.append(abs(before.mean() - after.mean()))
    return np.array(steps)


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the PSNR of uint8 images in dB, `EQUAL_DB` for equal images."""
    error = np.square(found.astype(np.float64) - expected).mean()
    return float(10 * np.log10(255**2 / error)) if error else EQUAL_DB


def degrade_case(case: DegradationCase, name: str, truth: np.ndarray, seed: int) -> np.ndarray:
    """Degrade a photograph, uint8 [H, W, 3], with one of `CASES` or with `GRADIENT`."""
    if case is not GRADIENT:
        return degrade_photograph(case, name, truth, seed)[0]
    depth = np.broadcast_to(np.linspace(0, 1.3, truth.shape[1], dtype=np.float32), truth.shape[:2])
    clean = truth.astype(np.float32) / np.float32(255)
    image, _ = haze(clean, rng_for(name, "haze", seed), beta=1.5, airlight=0.9, depth=depth)
    return np.rint(image * 255).astype(np.uint8)


def added_time(restorer: Restorer, image: np.ndarray, tile_size: int, runs: int) -> float:
    """Measure the time that the guide and tone matching add to tiles.

    Tiles with and without them are restored in turn, `runs` times after one warm-up run each.

    Args:
        restorer: restorer opened with `tile_size`.
        image: uint8 [H, W, 3], larger than a tile.
        tile_size: side of the tiles in pixels.
        runs: number of measured runs, at least 1.

    Returns:
        Ratio of the medians, minus 1.
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
            restore_tiles(images, tile_size, restore, restorer.guide(images, restore) if guided else None)
            measured.append(time.perf_counter() - start)
    return float(np.median(seconds[True][1:]) / np.median(seconds[False][1:])) - 1


def parser() -> Parser:
    """Return the command's parser."""
    made = benchmark_parser("tiles", __doc__ or "")
    inputs = made.add_argument_group("input")
    add_bundle(inputs)
    inputs.add_argument(
        "--whole",
        type=Path,
        metavar="BUNDLE",
        help="bundle that restores the images whole if they are too large for --bundle (default: --bundle)",
    )
    add_photographs(inputs, None)
    inputs.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=SIZE,
        metavar=("W", "H"),
        help=f"width and height of the images in pixels (default: {SIZE[0]} {SIZE[1]})",
    )
    restoration = made.add_argument_group("restoration")
    restoration.add_argument(
        "--tile-size",
        type=int,
        nargs="+",
        default=list(TILE_SIZES),
        metavar="PIXELS",
        help=f"sides of the tiles in pixels (default: {' '.join(map(str, TILE_SIZES))})",
    )
    restoration.add_argument(
        "--condition",
        default="matching",
        help="condition path, or matching for the degradation of each case (default: %(default)s)",
    )
    add_runtime(restoration)
    measurement = made.add_argument_group("measurement")
    measurement.add_argument(
        "--time",
        type=int,
        metavar="N",
        help="measure the time that the guide adds in N runs on the path haze, instead of quality (default: off)",
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        Exit code 0.

    Raises:
        UsageError: an argument is invalid, or the images are too large to be restored whole.
    """
    arguments = parser().parse_args(argv)
    check_at_least_one(arguments, "limit", "size", "tile-size", "time")
    width, height = arguments.size
    bundle = Bundle.open(arguments.bundle)
    options = {"precision": arguments.precision, "num_threads": arguments.num_threads}
    if arguments.time is not None:
        pixels = next(iter(load_photographs(arguments.photographs, 1).values()))
        image = crop(pixels, width, height)
        for tile_size in arguments.tile_size:
            with Restorer(bundle, backend=arguments.backend, tile_size=tile_size, **options) as restorer:
                added = added_time(restorer, image, tile_size, arguments.time)
            print(f"{image.shape[1]} x {image.shape[0]} in tiles of {tile_size}: the guide adds {added:.1%} of time")
        return 0
    reference = bundle if arguments.whole is None else Bundle.open(arguments.whole)
    limit = reference.manifest.profile.size[2]
    if max(arguments.size) > limit:
        raise UsageError(f"--size {width} {height}: {reference.folder} restores at most {limit} whole; name --whole")
    photographs = load_photographs(arguments.photographs, arguments.limit)
    work = [(case, name, crop(pixels, width, height)) for name, pixels in photographs.items() for case in tile_cases()]
    restorers = {
        size: Restorer(bundle, backend=arguments.backend, tile_size=size, **options) for size in arguments.tile_size
    }
    restorers[None] = Restorer(reference, backend=arguments.backend, **options)
    results: list[TileResult] = []
    for case, name, truth in progress(work, label="restoring"):
        degradation = "haze" if case is GRADIENT else case.degradation
        condition = (degradation or "auto") if arguments.condition == "matching" else arguments.condition
        image = degrade_case(case, name, truth, arguments.seed)
        restored = {
            tile_size: np.asarray(restorer.restore(image, condition=condition))
            for tile_size, restorer in restorers.items()
        }
        whole = restored.pop(None)
        for tile_size, tiled in restored.items():
            if tile_size is None or max(truth.shape[:2]) <= tile_size:
                continue
            steps, loss = border_steps(tiled, whole, tile_size), psnr(whole, truth) - psnr(tiled, truth)
            step = float(steps.max()) if len(steps) else None
            results.append(TileResult(case.name, name, tile_size, psnr(tiled, whole), loss, step))
    print_table(results)
    return 0


def tile_cases() -> list[DegradationCase]:
    """Return the cases to measure: `GRADIENT`, and those of `CASES` with one noise level of the three."""
    return [GRADIENT, *(case for case in CASES if case.name not in ("noise-15", "noise-50"))]


def crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crop a photograph, uint8 [H, W, 3], to at most `width` x `height` pixels."""
    return np.ascontiguousarray(centre_crop(pixels, max(width, height))[:height, :width])


def print_table(results: Sequence[TileResult]) -> None:
    """Print one row for each case and tile size: means over the images, and the largest step."""
    rows: list[list[object]] = []
    for case, tile_size in dict.fromkeys((result.case, result.tile_size) for result in results):
        selected = [result for result in results if (result.case, result.tile_size) == (case, tile_size)]
        to_whole = float(np.mean([result.psnr_to_whole for result in selected]))
        loss = float(np.mean([result.loss for result in selected]))
        step = max((result.step for result in selected if result.step is not None), default=None)
        cells = round(to_whole, 2), round(loss, 2), None if step is None else round(step, 1)
        rows.append([case, tile_size, len(selected), *cells])
    print(table(["degradation", "tile", "images", "dB to whole", "dB lost", "largest step"], rows))


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
