"""Clean photographs for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from benchmarks.photographs import SCIKIT_IMAGE, SCIKIT_IMAGE_NAMES, load_photographs, load_square
from dod_runtime.errors import ImageError, UsageError


def test_default_photographs() -> None:
    found = load_photographs()
    assert tuple(found) == SCIKIT_IMAGE_NAMES
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in found.values())


def test_photographs_of_several_sources(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        Image.fromarray(data.chelsea()).save(tmp_path / f"{name}.png")
    assert tuple(load_photographs((tmp_path, SCIKIT_IMAGE), limit=1)) == ("cat", SCIKIT_IMAGE_NAMES[0])
    (tmp_path / "cat.png").rename(tmp_path / "coffee.png")
    with pytest.raises(UsageError, match="coffee"):
        load_photographs((SCIKIT_IMAGE, tmp_path))


def test_a_square_is_the_center_of_an_image(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    square = load_square(tmp_path / "wide.png", 40)
    assert square.shape == (40, 40, 3) and (square == 200).all()
    with pytest.raises(ImageError, match=r"none\.png"):
        load_square(tmp_path / "none.png", 40)
