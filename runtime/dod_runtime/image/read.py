"""Decoding of files, Pillow images and arrays to float RGB, and encoding of results in the form of the source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError, ImageWarning

__all__ = ["DecodedImage", "Source", "read"]

Source: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
"""Path of a file, Pillow image, or array `[H, W]` or `[H, W, C]`."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in gray (ITU-R BT.601), as in Pillow."""
DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of gray with more than 8 bits in integers."""
KEPT_INFO = ("icc_profile", "exif", "dpi")
"""Metadata that a result inherits from its source."""


@dataclass(frozen=True)
class DecodedImage:
    """An image as the model sees it, and what it takes to encode the result in the form of the source.

    Attributes:
        pixels: float32 `[H, W, 3]` in [-1, 1].
        gray: True if the source, and so the result, is gray.
        dtype: dtype of the source and of the result.
        alpha: opacity of the source, `[H, W]` in `dtype`; None if it has none.
        layout: shape of the source if it is an array, otherwise None.
        info: metadata of the source if it is a file or a Pillow image.
    """

    pixels: np.ndarray
    gray: bool
    dtype: np.dtype
    alpha: np.ndarray | None = None
    layout: tuple[int, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def finish(self, restored: np.ndarray) -> Image.Image | np.ndarray:
        """Encode a restored image in the form of the source, with its opacity and metadata.

        Args:
            restored: float `[H, W, 3]`; values outside [-1, 1] are clipped.

        Returns:
            An array of the source's dtype and shape if the source is an array, otherwise a Pillow image.
        """
        values = (restored @ LUMA)[..., None] if self.gray else restored
        channels = _from_signed(values, self.dtype)
        if self.alpha is not None:
            channels = np.concatenate([channels, self.alpha[..., None]], axis=-1)
        if self.layout is not None:
            return channels.reshape(self.layout).astype(self.dtype, copy=False)
        image = Image.fromarray(channels[..., 0] if channels.shape[-1] == 1 else channels)
        image.info.update(self.info)
        return image


def read(source: Source) -> DecodedImage:
    """Decode an image. EXIF orientation is applied.

    16-bit gray images and all arrays keep their depth. Other images are read at 8 bits per channel, and only the first
    of several frames is read; `ImageWarning` says so.

    Args:
        source: path of a file, Pillow image, or array `[H, W]` or `[H, W, C]` of uint8, uint16 or float in [0, 1]. One
            channel is gray, two are gray and alpha, three are RGB, four are RGB and alpha.

    Returns:
        The decoded image.

    Raises:
        ImageError: the source cannot be read, is no image, or has no pixels or values out of range.

    Example:
        >>> image = read(np.array([[0, 255]], np.uint8))
        >>> image.pixels[..., 0].tolist()
        [[-1.0, 1.0]]
        >>> image.finish(-image.pixels)
        array([[255,   0]], dtype=uint8)
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_image(source, "the image")
    if not isinstance(source, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ImageError(f"an image must be a path, a Pillow image or a NumPy array, not {type(source).__name__}")
    path = Path(source)
    if not path.exists():
        raise ImageError(f"no such file: {path}")
    if not path.is_file():
        raise ImageError(f"not a file: {path}")
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image: {path}") from error
    except Exception as error:  # Pillow's decoders raise many types of exceptions for malformed files
        raise ImageError(f"cannot read {path}: {error}") from error
    with image:
        return _from_image(image, str(path))


def _from_image(image: Image.Image, name: str) -> DecodedImage:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: it is {image.width}x{image.height}")
    try:
        losses = _losses(image)
        image.load()
    except Exception as error:
        raise ImageError(f"cannot read {name}: {str(error) or type(error).__name__}") from error
    for loss in losses:
        warnings.warn(f"{name} {loss}", ImageWarning, stacklevel=3)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # malformed EXIF in an image that is otherwise readable
        image = image.copy()
    info = {key: image.info[key] for key in KEPT_INFO if image.info.get(key)}
    if image.mode in DEEP_GRAY or image.mode == "F":
        return _deep_gray(image, name, info)
    gray = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    if not gray and image.mode not in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"):
        info.pop("icc_profile", None)  # it describes the color space before the conversion to RGB
    converted = image.convert(("LA" if alpha else "L") if gray else ("RGBA" if alpha else "RGB"))
    values = np.asarray(converted).reshape(image.height, image.width, -1)
    return _assemble(values, gray, alpha, info=info)


def _losses(image: Image.Image) -> list[str]:
    """Return what decoding an opened file is going to lose, in words. It must not be decoded yet."""
    losses: list[str] = []
    if image.mode not in DEEP_GRAY and any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):
        losses.append("has 16 bits per channel: restored at 8 bits")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        losses.append(f"has {frames} frames: only the first is restored")
    return losses


def _deep_gray(image: Image.Image, name: str, info: Mapping[str, Any]) -> DecodedImage:
    """Decode gray of more than 8 bits: the modes I;16*, I with 16-bit values, and F in [0, 1]. The result is I;16."""
    values = np.asarray(image)
    largest = 1 if image.mode == "F" else 65_535
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= largest):
        raise ImageError(f"{name} of mode {image.mode} has values outside 0..{largest}")
    if image.mode == "F":
        values = np.rint(values * 65_535.0)
    return _assemble(values.astype(np.uint16)[..., None], gray=True, alpha=False, info=info)


def _from_array(array: np.ndarray) -> DecodedImage:
    if array.dtype.str[1:] not in ("u1", "u2") and array.dtype.kind != "f":  # in either byte order
        raise ImageError(f"an array must be uint8, uint16 or float in 0..1, not {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ImageError(f"an array must be [H, W] or [H, W, C] with 1 to 4 channels, not {list(array.shape)}")
    if array.size == 0:
        raise ImageError(f"the array has no pixels: its shape is {list(array.shape)}")
    if array.dtype.kind == "f" and not (array.min() >= -1e-3 and array.max() <= 1 + 1e-3):
        raise ImageError(f"a float array must lie in 0..1: this one has {array.min():.4g} to {array.max():.4g}")
    values = array.reshape(*array.shape[:2], -1)
    channels = values.shape[2]
    return _assemble(values, channels <= 2, channels in (2, 4), layout=array.shape)


def _assemble(values: np.ndarray, gray: bool, alpha: bool, **rest: Any) -> DecodedImage:
    """Return the decoded image of values `[H, W, C]`; with `alpha`, the last channel is the opacity."""
    opacity = values[..., -1].copy() if alpha else None
    color = _to_signed(values[..., :-1] if alpha else values)
    pixels = np.repeat(color, 3, axis=2) if gray else color
    return DecodedImage(pixels, gray, values.dtype, opacity, **rest)


def _to_signed(values: np.ndarray) -> np.ndarray:
    """Map uint8, uint16, or float in [0, 1] to float32 in [-1, 1]."""
    if values.dtype.kind == "f":
        return np.clip(values.astype(np.float32) * 2 - 1, -1, 1)
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max / 2) - 1


def _from_signed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Map float in [-1, 1] to the full range of an integer dtype, rounded, or to a float dtype in [0, 1]."""
    values = values.astype(np.float32)
    if dtype.kind == "f":
        return np.clip((values + 1) / 2, 0, 1).astype(dtype)
    largest = np.iinfo(dtype).max
    return np.clip(np.rint((values + 1) * np.float32(largest / 2)), 0, largest).astype(dtype)
