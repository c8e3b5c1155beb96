"""PSNR and SSIM of restored pictures, and the tables of them: `python -m dod.evaluate OUTPUTS TRUTHS`.

Both folders hold pictures of the same names, in the same subfolders; extensions may differ. Any method's outputs will
do. RGB in 0..1, no border cropped, the mean over the pictures: what the papers of all-in-one restoration report.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dod.errors import DataError, run_command

__all__ = ["Score", "evaluate", "mean", "pair", "pictures", "psnr", "read_rgb", "score", "ssim", "table"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SSIM_WINDOW = 7
NAMED = 5  # so many names stand in an error

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Score:
    """One picture, or a mean. psnr in dB, infinite for equal pictures; ssim at most 1."""

    name: str
    psnr: float
    ssim: float


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), in float64; infinite for equal pictures.

    a, b: of one shape, uint8 or float in 0..1. Raises DataError for others.

    >>> round(psnr(np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.1)), 6)
    20.0
    """
    first, second = _unit(a, b)
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Array, b: Array) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it: 7x7 windows, the mean of the channels.

    a, b: [H, W, 3], uint8 or float in 0..1, at least 7x7 pixels. Raises DataError for others.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise DataError(f"SSIM needs scikit-image ({error}): pip install -e '.[eval]'") from error
    first, second = _unit(a, b)
    if min(first.shape[:2]) < SSIM_WINDOW:
        raise DataError(f"SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {list(first.shape)}")
    return float(np.asarray(structural_similarity(first, second, data_range=1.0, channel_axis=2)))


def score(name: str, output: Array, truth: Array) -> Score:
    """PSNR and SSIM of an output [H, W, 3] against its truth. Raises DataError, with the name, where they differ."""
    try:
        return Score(name, psnr(output, truth), ssim(output, truth))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def mean(scores: Sequence[Score], name: str = "mean") -> Score:
    """The mean over pictures, of the decibels too, as papers do."""
    if not scores:
        raise DataError("no pictures to take a mean of")
    return Score(name, *(float(np.mean([getattr(each, key) for each in scores])) for key in ("psnr", "ssim")))


def pair(outputs: Path, truths: Path) -> list[tuple[str, Path, Path]]:
    """(name, output, truth) of all pictures below two folders, by their path without its extension, in order.

    Subfolders that `truths` does not have are passed over. Raises DataError for a missing or empty folder, a name that
    occurs twice, and names without a counterpart.
    """
    theirs = pictures(truths)
    places = {Path(name).parent for name in theirs}
    mine = {name: path for name, path in pictures(outputs).items() if Path(name).parent in places}
    for folder, wanted, there in ((outputs, theirs, mine), (truths, mine, theirs)):
        missing = [name for name in wanted if name not in there]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise DataError(f"{folder} lacks {len(missing)} of {len(wanted)}: {', '.join(missing[:NAMED])}{more}")
    return [(name, mine[name], path) for name, path in theirs.items()]


def pictures(folder: Path) -> dict[str, Path]:
    """The picture files below a folder by their path without its extension, in order.

    Raises DataError for a missing folder, one without pictures, and a name that occurs twice.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{folder} has {name} twice: {found[name].name} and {path.name}; keep one")
            found[name] = path
    if not found:
        raise DataError(f"no pictures in {folder}: none ends in {', '.join(SUFFIXES)}")
    return found


def evaluate(outputs: Path, truths: Path, bar: bool = False) -> list[Score]:
    """The scores of all pictures of two folders. bar: shows progress, where there is a terminal. Raises DataError."""
    pairs = pair(outputs, truths)
    with tqdm(pairs, "evaluating", unit="picture", disable=None if bar else True) as watched:
        return [score(name, read_rgb(output), read_rgb(truth)) for name, output, truth in watched]


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """A picture file as uint8 [H, W, 3]. Raises DataError."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], markdown: bool = False) -> str:
    """A table, the first column on the left and numbers on the right; SSIM-like cells with 4 digits are given as texts.

    >>> print(table(["picture", "PSNR"], [["a", "31.20"]]))
    picture   PSNR
    a        31.20
    """
    lines = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headers))]
    texts = [
        [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line) for line in texts)
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [texts[0], rule, *texts[1:]])


def report(scores: Sequence[Score], markdown: bool = False) -> str:
    """The table of all pictures and their mean."""
    rows = [[each.name, f"{each.psnr:.2f}", f"{each.ssim:.4f}"] for each in (*scores, mean(scores))]
    return table(["picture", "PSNR dB", "SSIM"], rows, markdown)


def as_json(scores: Sequence[Score]) -> dict[str, Any]:
    """JSON values: the scores, their mean, and what was computed. The infinite PSNR of equal pictures becomes null."""

    def plain(each: Score) -> dict[str, Any]:
        return {**asdict(each), "psnr": each.psnr if math.isfinite(each.psnr) else None}

    metrics = {
        "psnr": "RGB in 0..1, float64, no border cropped",
        "ssim": f"scikit-image, RGB in 0..1, {SSIM_WINDOW}x{SSIM_WINDOW} windows, mean of the channels",
    }
    return {"metrics": metrics, "pictures": [plain(each) for each in scores], "mean": plain(mean(scores))}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dod.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("outputs", type=Path, help="folder of restored pictures")
    parser.add_argument("truths", type=Path, help="folder of clean pictures, with the same names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    scores = evaluate(arguments.outputs, arguments.truths, bar=True)
    print(report(scores))
    for path, text in ((arguments.json, _dump(scores)), (arguments.markdown, report(scores, markdown=True))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n", "utf-8")
    return 0


def _dump(scores: Sequence[Score]) -> str:
    return json.dumps(as_json(scores), indent=1, allow_nan=False)


def _unit(a: Array, b: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two pictures as float64 in 0..1."""
    if a.shape != b.shape or not a.size:
        raise DataError(f"the pictures differ in size: {_size(a)} and {_size(b)}")
    return _unit_of(a), _unit_of(b)


def _unit_of(picture: Array) -> NDArray[np.float64]:
    if picture.dtype == np.uint8:
        return picture.astype(np.float64) / 255
    values = picture.astype(np.float64)
    if picture.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):
        raise DataError(f"a picture must be uint8, or float in 0..1, not {picture.dtype}: clip it first")
    return values


def _size(picture: Array) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}" if picture.ndim >= 2 else str(list(picture.shape))


if __name__ == "__main__":
    sys.exit(run_command(main))
