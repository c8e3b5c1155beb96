"""Clean photographs to measure with: those that scikit-image ships, or the images of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dod.data.images import find_images
from dod_runtime.errors import ImageError, UsageError
from dod_runtime.image.read import read

__all__ = ["SCIKIT_IMAGE", "SCIKIT_IMAGE_NAMES", "load_photographs", "load_square"]

SCIKIT_IMAGE = "scikit-image"
"""Source that stands for the photographs that scikit-image ships. No model here was trained on them."""
SCIKIT_IMAGE_NAMES = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
"""Color photographs of everyday scenes in scikit-image's wheel; nothing is downloaded."""


def load_photographs(
    sources: Sequence[Path | str] = (SCIKIT_IMAGE,), limit: int | None = None
) -> dict[str, np.ndarray]:
    """Load clean photographs.

    Args:
        sources: folders, read with their subfolders, or `SCIKIT_IMAGE`.
        limit: maximum number of photographs of each source.

    Returns:
        Photographs by name, uint8 [H, W, 3].

    Raises:
        ImageError: a file cannot be read as an image.
        UsageError: scikit-image is missing, or two sources have a photograph of one name.
        DataError: a folder is missing or has no images.
    """
    found: dict[str, np.ndarray] = {}
    for source in sources:
        if str(source) == SCIKIT_IMAGE:
            loaded = {name: _load_from_scikit_image(name) for name in SCIKIT_IMAGE_NAMES[:limit]}
        else:
            loaded = {
                name: np.asarray(_load_rgb(path)) for name, path in list(find_images(Path(source)).items())[:limit]
            }
        if duplicates := sorted(found.keys() & loaded.keys()):
            raise UsageError(f"photograph {duplicates[0]} is in {source} and in an earlier folder: rename one of them")
        found |= loaded
    return found


def load_square(path: Path, size: int) -> np.ndarray:
    """Load the center square of an image file, resized.

    Args:
        path: image file.
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ImageError: the file is missing or cannot be read as an image.
    """
    return np.asarray(ImageOps.fit(_load_rgb(path), (size, size), Image.Resampling.LANCZOS))


def _load_rgb(path: Path) -> Image.Image:
    decoded = read(path)
    image = decoded.finish(decoded.pixels)
    if not isinstance(image, Image.Image):
        raise ImageError(f"{path} cannot be read as an image")
    return image.convert("RGB")


def _load_from_scikit_image(name: str) -> np.ndarray:
    try:
        from skimage import data
    except ImportError as error:
        raise UsageError(
            f"the default photographs need scikit-image ({error}): pip install -e '.[eval]', or name --photographs"
        ) from error
    return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
