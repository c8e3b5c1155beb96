"""Folders of images: finding files, matching them with their clean versions, and reading pixels."""

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
    "FloatImage",
    "Pixels",
    "centre_crop",
    "crop_to_multiple",
    "degradation_of",
    "few",
    "find_images",
    "match_images",
    "read_rgb",
]

Pixels = NDArray[np.uint8]
"""An RGB image as uint8 [H, W, 3]."""
FloatImage = NDArray[np.float32]
"""An RGB image as float32 [H, W, 3] in 0 to 1."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""File name suffixes of images, in lower case."""
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Exceptions that Pillow raises for damaged files."""


def find_images(folder: Path) -> dict[str, Path]:
    """Find the image files below a folder.

    Args:
        folder: the folder; its subfolders are searched too.

    Returns:
        Paths by name, sorted. A name is the path relative to `folder`, without its suffix.

    Raises:
        DataError: the folder is missing or has no images, or two images have the same name.
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


def match_images(folder: Path, truths: Path) -> dict[str, tuple[Path, Path]]:
    """Match the images below a folder with their clean versions below another folder, by name.

    Subfolders of `folder` that `truths` does not have are ignored.

    Args:
        folder: folder of degraded or restored images.
        truths: folder of clean images with the same names; suffixes may differ.

    Returns:
        (image, clean image) by name, sorted; see `find_images` for names.

    Raises:
        DataError: a folder is missing or empty, a name occurs twice, or an image has no counterpart.
    """
    clean = find_images(truths)
    subfolders = {Path(name).parent for name in clean}
    found = {name: path for name, path in find_images(folder).items() if Path(name).parent in subfolders}
    for searched, expected, present in ((folder, clean, found), (truths, found, clean)):
        missing = [name for name in expected if name not in present]
        if missing:
            raise DataError(f"{searched} lacks {len(missing)} of {len(expected)} images: {few(missing)}")
    return {name: (found[name], path) for name, path in clean.items()}


def few(names: Sequence[object], limit: int = 5) -> str:
    """Join the first few names for an error message and count the rest.

    Args:
        names: the names.
        limit: maximum number of names that are listed.

    Returns:
        The text.

    Example:
        >>> few(list("abcdefg"))
        'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def degradation_of(name: str) -> str:
    """Return the degradation that an image shows: the first folder of its name, or "." if it is in no folder.

    Args:
        name: name of an image, as `find_images` returns it.

    Returns:
        The name of the folder.

    Example:
        >>> degradation_of("haze/part1/0001"), degradation_of("0001")
        ('haze', '.')
    """
    folder, slash, _ = name.partition("/")
    return folder if slash else "."


def centre_crop(pixels: NDArray[np.generic], size: int) -> NDArray[Any]:
    """Crop the center of an image.

    Args:
        pixels: [H, W, ...].
        size: maximum height and width of the result in px.

    Returns:
        [min(H, size), min(W, size), ...], a view.
    """
    top, left = (max(0, (side - size) // 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def crop_to_multiple(pixels: Pixels, multiple: int) -> Pixels:
    """Crop the center of an image to sides that are multiples of a number.

    Where an odd number of pixels is removed, the extra one goes at the bottom or right, as in this field's usual
    scripts.

    Args:
        pixels: uint8 [H, W, C].
        multiple: divisor of the resulting height and width.

    Returns:
        uint8 [H', W', C], a view.

    Raises:
        DataError: a side is shorter than `multiple`.

    Example:
        >>> crop_to_multiple(np.zeros((35, 48, 3), np.uint8), 16).shape
        (32, 48, 3)
    """
    height, width = pixels.shape[:2]
    if min(height, width) < multiple:
        raise DataError(f"{width}x{height} px is too small to crop to a multiple of {multiple} px")
    top, left = height % multiple // 2, width % multiple // 2
    return pixels[top : top + height // multiple * multiple, left : left + width // multiple * multiple]


def read_rgb(path: Path) -> Pixels:
    """Read an image file.

    Args:
        path: the file.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {path}: {error}; remove it or prepare the folder again") from error
