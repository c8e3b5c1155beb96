"""Written files: the format of the extension, metadata, and formats that cannot hold an image."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dod_runtime.errors import ImageError
from dod_runtime.image.read import read
from dod_runtime.image.write import check_writable, format_of, save

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif_of(maker: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = maker
    return exif


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_lossless_formats_keep_everything(mode: str, suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "I;16": ()}[mode]
    dtype = np.uint16 if mode == "I;16" else np.uint8
    values = random.integers(0, np.iinfo(dtype).max + 1, (6, 5, *channels)).astype(dtype)
    save(Image.fromarray(values), tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as again:
        assert again.mode == mode
        np.testing.assert_array_equal(np.asarray(again), values)
    assert os.listdir(tmp_path) == [f"a.{suffix}"]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "tiff", "bmp", "ppm", "gif", "tga", "jp2"])
def test_the_extension_chooses_the_format(suffix: str, tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "tagged.tif", exif=exif_of("maker"), dpi=(300, 300))
    image = read(tmp_path / "tagged.tif").finish(read(tmp_path / "tagged.tif").pixels)
    image.info.update(exif=exif_of("maker").tobytes(), icc_profile=SRGB)
    save(image, tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as again:
        assert again.size == (90, 60)


def test_jpeg_has_quality_95_and_keeps_profile_exif_and_resolution(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    image.info.update(icc_profile=SRGB, exif=exif_of("maker").tobytes(), dpi=(300, 300))
    save(image, tmp_path / "a.jpg")
    image.save(tmp_path / "b.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as ours, Image.open(tmp_path / "b.jpg") as expected:
        assert ours.quantization == expected.quantization
        assert ours.info["icc_profile"] == SRGB and ours.info["dpi"] == (300, 300)
        assert ours.getexif()[0x010F] == "maker"


@pytest.mark.parametrize(
    ("mode", "name", "message"),
    [
        ("RGBA", "a.jpg", r"a\.jpg.*JPEG.*transparency.*\.png"),
        ("LA", "a.ppm", r"a\.ppm.*PPM.*transparency"),
        ("I;16", "a.jpg", r"a\.jpg.*JPEG.*16-bit.*\.png"),
        ("I;16", "a.webp", r"a\.webp.*WEBP.*16-bit"),
        ("RGB", "a.xyz", r"a\.xyz.*\.png"),
        ("RGB", "a", r"\(none\)"),
        ("RGB", "a.pdf", r"a\.pdf.*extension"),
    ],
)
def test_images_that_a_format_cannot_hold(mode: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=message):
        save(Image.new(mode, (3, 3)), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_too_large_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.webp.*WEBP"):
        save(Image.new("L", (20_000, 1)), tmp_path / "a.webp")
    assert os.listdir(tmp_path) == []


def test_grey_with_alpha_to_bmp(tmp_path: Path) -> None:
    save(Image.new("LA", (3, 3), (9, 8)), tmp_path / "a.bmp")
    assert (tmp_path / "a.bmp").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_former_file(error: BaseException, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.png").write_text("before")

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)):
        save(Image.new("L", (3, 3)), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_text() == "before"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none/a\.png"):
        save(Image.new("L", (3, 3)), tmp_path / "none" / "a.png")


def test_check_writable() -> None:
    assert check_writable("a.JPG") == "JPEG"
    assert format_of("a.JPG") == "JPEG" and format_of("a.pdf") is None
    with pytest.raises(ImageError, match=r"a\.pdf"):
        check_writable("a.pdf")
