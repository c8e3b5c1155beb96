"""Writing of images, in the format of the file's extension and with color profile, EXIF and resolution."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError
from ..files import atomic_write
from .read import KEPT_INFO

__all__ = ["check_writable", "format_of", "save"]

ALPHA = {"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "GIF", "TGA", "BMP"}
"""Formats that can hold opacity, by Pillow's names."""
DEEP = {"PNG", "TIFF", "PPM", "JPEG2000"}
"""Formats that can hold 16-bit gray."""
FORMATS = ALPHA | DEEP | {"JPEG"}
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95},
}
"""Options of Pillow's encoders."""


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Return the format that a file's extension stands for.

    Args:
        path: file that need not exist.

    Returns:
        Pillow's name of the format; None if the extension is unknown or the format cannot be written.

    Example:
        >>> format_of("street.JPG"), format_of("street.pdf")
        ('JPEG', None)
    """
    name = Image.registered_extensions().get(Path(path).suffix.lower())
    return name if name in FORMATS and name in Image.SAVE else None


def check_writable(path: str | os.PathLike[str]) -> str:
    """Check that an image can be written to a file of this name, before the work of restoring it.

    Args:
        path: file to write.

    Returns:
        Pillow's name of the format.

    Raises:
        ImageError: the extension is unknown or the format cannot be written.
    """
    name = format_of(path)
    if name is None:
        suffix = Path(path).suffix or "(none)"
        raise ImageError(
            f"cannot write {path}: unknown extension {suffix}; use .png, .jpg, .tif, .webp, .bmp or another of "
            + ", ".join(sorted(FORMATS))
        )
    return name


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image with the color profile, EXIF and resolution of its `info`.

    The extension chooses the format. JPEG, WebP and AVIF have quality 95, JPEG without chroma subsampling. An
    interrupted write leaves the former file as it was.

    Args:
        image: image to write.
        path: file to write. Its folder must exist.

    Raises:
        ImageError: the extension is unknown, or the format cannot hold the image.
        OSError: the file cannot be written.
    """
    path = Path(path)
    name = check_writable(path)
    if image.mode in ("LA", "RGBA") and name not in ALPHA:
        raise ImageError(f"cannot write {path}: {name} holds no transparency; use .png, .webp or .tif")
    if image.mode == "I;16" and name not in DEEP:
        raise ImageError(f"cannot write {path}: {name} holds no 16-bit gray; use .png or .tif")
    if image.mode == "LA" and name == "BMP":
        image = image.convert("RGBA")
    options = {key: image.info[key] for key in KEPT_INFO if image.info.get(key)}
    data = _encode(image, path, name, {**options, **OPTIONS.get(name, {})})
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _encode(image: Image.Image, path: Path, name: str, options: dict[str, Any]) -> bytes:
    """Encode an image in memory: Pillow would replace the errors of a disk by its own."""
    file = io.BytesIO()
    try:
        image.save(file, name, **options)
    except Exception as error:  # encoders raise many types of exceptions
        raise ImageError(f"cannot write {path} as {name}: {str(error) or type(error).__name__}") from error
    return file.getvalue()
