"""Clean photographs to measure with: scikit-image's own, which no model here was trained on, or a folder's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dod.data.images import find_images
from dod_runtime.errors import ImageError, UsageError
from dod_runtime.image.read import read

__all__ = ["OWN", "SCIKIT_IMAGE", "photographs", "square"]

OWN = "scikit-image"
"""What stands for scikit-image's photographs in the place of a folder."""
SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
"""Its colour photographs of everyday scenes; all come with its wheel, so that nothing is downloaded."""


def photographs(sources: Sequence[Path | str] = (OWN,), limit: int | None = None) -> dict[str, np.ndarray]:
    """Photographs by name, uint8 [H, W, 3]: of each folder and its subfolders, or scikit-image's where it is `OWN`.

    limit: of them, the first so many of each source. Raises ImageError for a file that is no image, UsageError
    where scikit-image is missing or two sources have a name in common, and DataError for a folder that is missing or
    has no images.
    """
    found: dict[str, np.ndarray] = {}
    for source in sources:
        if str(source) == OWN:
            some = {name: _of_scikit_image(name) for name in SCIKIT_IMAGE[:limit]}
        else:
            some = {name: np.asarray(_rgb(path)) for name, path in list(find_images(Path(source)).items())[:limit]}
        if twice := sorted(found.keys() & some.keys()):
            raise UsageError(f"{source} holds a photograph named {twice[0]}, as a folder before it does: rename one")
        found |= some
    return found


def square(path: Path, size: int) -> np.ndarray:
    """The middle square of an image file, resized to `size`: uint8 [size, size, 3]. Raises ImageError."""
    return np.asarray(ImageOps.fit(_rgb(path), (size, size), Image.Resampling.LANCZOS))


def _rgb(path: Path) -> Image.Image:
    decoded = read(path)
    image = decoded.finish(decoded.pixels)
    if not isinstance(image, Image.Image):
        raise ImageError(f"{path} was not read as an image")
    return image.convert("RGB")


def _of_scikit_image(name: str) -> np.ndarray:
    try:
        from skimage import data
    except ImportError as error:
        raise UsageError(
            f"the default photographs are scikit-image's ({error}): pip install -e '.[eval]', or name --photographs"
        ) from error
    return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
