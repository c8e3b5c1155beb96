"""Folders of images: names, matching, crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.data.images import centre_crop, crop_to_multiple, find_images, match_images, read_rgb
from dod.errors import DataError


def save(path: Path, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 7).save(path)
    return path


def test_images_are_found_by_name_without_suffix(tmp_path: Path) -> None:
    paths = [save(tmp_path / name) for name in ("b.png", "a/b.JPG", "a/c.webp")]
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images(tmp_path) == {"a/b": paths[1], "a/c": paths[2], "b": paths[0]}
    assert read_rgb(paths[0]).shape == (4, 6, 3) and read_rgb(paths[0]).max() == 7
    save(tmp_path / "b.jpg")
    with pytest.raises(DataError, match="b twice.*b.jpg"):
        find_images(tmp_path)


def test_images_are_matched_by_name_and_extra_subfolders_ignored(tmp_path: Path) -> None:
    truth, image = save(tmp_path / "truth/rain/1.png"), save(tmp_path / "input/rain/1.jpg")
    save(tmp_path / "input/other/2.png")
    assert match_images(tmp_path / "input", tmp_path / "truth") == {"rain/1": (image, truth)}
    save(tmp_path / "truth/rain/9.png")
    with pytest.raises(DataError, match="input lacks 1 of 2.* rain/9"):
        match_images(tmp_path / "input", tmp_path / "truth")


def test_crops_are_centred() -> None:
    pixels = np.arange(7 * 9).reshape(7, 9, 1)
    np.testing.assert_array_equal(centre_crop(pixels, 3), pixels[2:5, 3:6])
    np.testing.assert_array_equal(centre_crop(pixels, 8), pixels[:, :8])
    np.testing.assert_array_equal(crop_to_multiple(pixels.astype(np.uint8), 4), pixels[1:5, :8])
    with pytest.raises(DataError, match="9x7.* 8"):
        crop_to_multiple(pixels.astype(np.uint8), 8)
