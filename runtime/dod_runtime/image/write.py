"""Writes images: the format by the extension, the colour profile kept, a file whole or absent."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError
from .read import KEPT_INFO

__all__ = ["check_writable", "format_of", "save"]

ALPHA = {"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "GIF", "TGA", "BMP"}
DEEP = {"PNG", "TIFF", "PPM", "JPEG2000"}
FORMATS = ALPHA | DEEP | {"JPEG"}
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95},
}


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Pillow's name of the format that the extension of `path` stands for; None where it can not be written."""
    name = Image.registered_extensions().get(Path(path).suffix.lower())
    return name if name in FORMATS and name in Image.SAVE else None


def check_writable(path: str | os.PathLike[str]) -> str:
    """The format of a file to be written. Raises ImageError before any work is done for an unknown extension."""
    name = format_of(path)
    if name is None:
        suffix = Path(path).suffix or "(none)"
        raise ImageError(
            f"cannot write {path}: unknown extension {suffix}; use .png, .jpg, .tif, .webp, .bmp or another of "
            + ", ".join(sorted(FORMATS))
        )
    return name


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes `image` to `path` at once: an interrupted write leaves what was there before.

    JPEG at quality 95 and without chroma subsampling; the colour profile, EXIF and resolution of `image.info` go
    along. Raises ImageError where the format cannot hold the image, and OSError where the disk cannot.
    """
    path = Path(path)
    name = check_writable(path)
    if image.mode in ("LA", "RGBA") and name not in ALPHA:
        raise ImageError(f"cannot write {path}: {name} holds no transparency; use .png, .webp or .tif")
    if image.mode == "I;16" and name not in DEEP:
        raise ImageError(f"cannot write {path}: {name} holds no 16-bit grey; use .png or .tif")
    if image.mode == "LA" and name == "BMP":
        image = image.convert("RGBA")
    options = {key: image.info[key] for key in KEPT_INFO if image.info.get(key)}
    data = _encode(image, path, name, {**options, **OPTIONS.get(name, {})})
    part = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")  # a long name has no room for more
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _encode(image: Image.Image, path: Path, name: str, options: dict[str, Any]) -> bytes:
    """The bytes of the file. Made in memory: Pillow hides the errors of a disk behind its own."""
    file = io.BytesIO()
    try:
        image.save(file, name, **options)
    except Exception as error:  # encoders, like decoders, fail with exceptions of many kinds
        raise ImageError(f"cannot write {path} as {name}: {str(error) or type(error).__name__}") from error
    return file.getvalue()
