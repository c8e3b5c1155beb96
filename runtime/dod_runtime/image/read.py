"""Images in and out: files, Pillow images and arrays become float RGB, and what is restored goes back as it came."""

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

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # what Pillow makes grey with (ITU-R BT.601)
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
KEPT_INFO = ("icc_profile", "exif", "dpi")


@dataclass(frozen=True)
class DecodedImage:
    """One image as the model sees it, with what is needed to give the result back in the form it came in.

    pixels: float32 [H, W, 3] in [-1, 1]. alpha: [H, W] in the dtype that came, or None. dtype: of the result.
    layout: the shape of an array that came, or None for a file or a Pillow image. info: metadata of an image.
    """

    pixels: np.ndarray
    grey: bool
    dtype: np.dtype
    alpha: np.ndarray | None = None
    layout: tuple[int, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def finish(self, restored: np.ndarray) -> Image.Image | np.ndarray:
        """The result in the form of the image: restored float [H, W, 3] in [-1, 1] -> Pillow image or array."""
        values = (restored @ LUMA)[..., None] if self.grey else restored
        channels = _from_signed(values, self.dtype)
        if self.alpha is not None:
            channels = np.concatenate([channels, self.alpha[..., None]], axis=-1)
        if self.layout is not None:
            return channels.reshape(self.layout).astype(self.dtype, copy=False)
        image = Image.fromarray(channels[..., 0] if channels.shape[-1] == 1 else channels)
        image.info.update(self.info)
        return image


def read(source: Source) -> DecodedImage:
    """Reads a file, a Pillow image, or an array of uint8, uint16 or float in 0..1 laid out as HW or HWC.

    One channel is grey, two are grey and alpha, three RGB, four RGB and alpha. EXIF orientation is applied. Grey of
    16 bits keeps them, and so does every array; other images are read at 8 bits, with a ImageWarning where they
    have more. Only the first of several frames is read, with a warning too.
    Raises ImageError.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_image(source, "the image")
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"an image is a path, a Pillow image or a numpy array, not {type(source).__name__}")
    path = Path(source)
    if not path.exists():
        raise ImageError(f"no such file: {path}")
    if not path.is_file():
        raise ImageError(f"not a file: {path}")
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image: {path}") from error
    except Exception as error:  # Pillow's decoders answer hostile bytes with exceptions of many kinds
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
    except Exception:  # a broken EXIF block is no reason to refuse a sound image
        image = image.copy()
    info = {key: image.info[key] for key in KEPT_INFO if image.info.get(key)}
    if image.mode in DEEP_GREY or image.mode == "F":
        return _deep_grey(image, name, info)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    if not grey and image.mode not in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"):
        info.pop("icc_profile", None)  # it describes the colours that are left behind here
    converted = image.convert(("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB"))
    values = np.asarray(converted).reshape(image.height, image.width, -1)
    return _assemble(values, grey, alpha, info=info)


def _losses(image: Image.Image) -> list[str]:
    """What of an image file that was not decoded yet will not come back."""
    losses = []
    if image.mode not in DEEP_GREY and any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):
        losses.append("has 16 bits per channel: restored at 8 bits")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        losses.append(f"has {frames} frames: only the first is restored")
    return losses


def _deep_grey(image: Image.Image, name: str, info: Mapping[str, Any]) -> DecodedImage:
    """Grey of more than 8 bits: I;16 and its kin, I with 16-bit values, F in 0..1. All come back as I;16."""
    values = np.asarray(image)
    largest = 1 if image.mode == "F" else 65_535
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= largest):
        raise ImageError(f"{name} of mode {image.mode} has values outside 0..{largest}")
    if image.mode == "F":
        values = np.rint(values * 65_535.0)
    return _assemble(values.astype(np.uint16)[..., None], grey=True, alpha=False, info=info)


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


def _assemble(values: np.ndarray, grey: bool, alpha: bool, **rest: Any) -> DecodedImage:
    """values: [H, W, C], the last channel alpha where there is one."""
    opacity = values[..., -1].copy() if alpha else None
    colour = _to_signed(values[..., :-1] if alpha else values)
    pixels = np.repeat(colour, 3, axis=2) if grey else colour
    return DecodedImage(pixels, grey, values.dtype, opacity, **rest)


def _to_signed(values: np.ndarray) -> np.ndarray:
    """uint8, uint16 or float 0..1 -> float32 in [-1, 1]."""
    if values.dtype.kind == "f":
        return np.clip(values.astype(np.float32) * 2 - 1, -1, 1)
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max / 2) - 1


def _from_signed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float in [-1, 1] -> `dtype`: rounded for whole numbers, 0..1 for floats."""
    values = values.astype(np.float32)
    if dtype.kind == "f":
        return np.clip((values + 1) / 2, 0, 1).astype(dtype)
    largest = np.iinfo(dtype).max
    return np.clip(np.rint((values + 1) * np.float32(largest / 2)), 0, largest).astype(dtype)
