"""Folders of images: what is in them, which belongs to which, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dod.errors import DataError

__all__ = [
    "SUFFIXES",
    "UNREADABLE",
    "centre_crop",
    "crop_to_multiple",
    "few",
    "match",
    "images",
    "read_rgb",
    "task_of",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for damaged files


def images(folder: Path) -> dict[str, Path]:
    """The image files below a folder by their path without its extension, in order.

    Raises DataError for a missing folder, one without images, and a name that occurs twice.
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
        raise DataError(f"no images in {folder}: none ends in {', '.join(SUFFIXES)}")
    return found


def match(folder: Path, truths: Path) -> dict[str, tuple[Path, Path]]:
    """(image, truth) of all images below two folders, by their path without its extension, in order.

    Subfolders that `truths` does not have are passed over. Raises DataError for a missing or empty folder, a name that
    occurs twice, and names without a counterpart.
    """
    theirs = images(truths)
    places = {Path(name).parent for name in theirs}
    mine = {name: path for name, path in images(folder).items() if Path(name).parent in places}
    for where, wanted, there in ((folder, theirs, mine), (truths, mine, theirs)):
        missing = [name for name in wanted if name not in there]
        if missing:
            raise DataError(f"{where} lacks {len(missing)} of {len(wanted)}: {few(missing)}")
    return {name: (mine[name], path) for name, path in theirs.items()}


def few(names: Sequence[object], limit: int = 5) -> str:
    """The first few of the names, for an error, and how many more there are.

    >>> few(list("abcdefg"))
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def task_of(name: str) -> str:
    """The task that an image's name belongs to: the first folder on its path, or "." where it lies in none.

    >>> task_of("haze/part1/0001"), task_of("0001")
    ('haze', '.')
    """
    folder, slash, _ = name.partition("/")
    return folder if slash else "."


def centre_crop(pixels: NDArray[np.generic], size: int) -> NDArray[Any]:
    """The middle of an image [H, W, ...], at most `size` pixels on either side."""
    top, left = (max(0, (side - size) // 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def crop_to_multiple(pixels: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """The middle of an image [H, W, C], its sides reduced to multiples. Raises DataError if none is left.

    An odd rest leaves one pixel more at the bottom or at the right, as in the usual scripts of the field.

    >>> crop_to_multiple(np.zeros((35, 48, 3), np.uint8), 16).shape
    (32, 48, 3)
    """
    height, width = pixels.shape[:2]
    if min(height, width) < multiple:
        raise DataError(f"{width}x{height} is too small to be cropped to a multiple of {multiple} pixels")
    top, left = height % multiple // 2, width % multiple // 2
    return pixels[top : top + height // multiple * multiple, left : left + width // multiple * multiple]


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image file as RGB uint8 [H, W, 3]. Raises DataError, naming it, where it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {path}: {error}; remove it or prepare the folder again") from error
