"""Results have the form of their source, for every kind of image; invalid sources are refused in one line."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from dod_runtime.errors import ImageError, ImageWarning
from dod_runtime.image.read import read

ORIENTATION = 0x0112


def round_trip(source):
    image = read(source)
    assert image.pixels.dtype == np.float32 and image.pixels.shape[2] == 3
    assert np.abs(image.pixels).max() <= 1
    return image.finish(image.pixels)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda hw: st.sampled_from([hw, *((*hw, channels) for channels in (1, 2, 3, 4))])
)
dtypes = st.sampled_from([np.dtype(name) for name in ("u1", "<u2", ">u2", "f2", "f4", "f8")])


@given(data=st.data(), shape=shapes, dtype=dtypes)
def test_arrays_keep_dtype_layout_and_values(data: st.DataObject, shape: tuple[int, ...], dtype: np.dtype) -> None:
    elements = st.floats(0, 1, width=16) if dtype.kind == "f" else st.integers(0, np.iinfo(dtype).max)
    array = data.draw(hnp.arrays(dtype, shape, elements=elements))
    result = round_trip(array)
    assert result.dtype == array.dtype and result.shape == array.shape
    np.testing.assert_allclose(result.astype(float), array.astype(float), atol=2e-7 if dtype.kind == "f" else 0)


def test_mapping_of_uint8() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_allclose(read(levels).pixels[0, :, 0], levels[0] / 127.5 - 1, atol=1e-6)


def test_results_are_clipped_and_rounded() -> None:
    image = read(np.zeros((1, 3, 3), np.uint8))
    values = np.repeat(np.array([-1.5, 0.0, 1.5], np.float32)[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(image.finish(values)[0, :, 0], [0, 128, 255])


def test_grey_results_are_the_luma_of_rgb() -> None:
    image = read(np.zeros((1, 1), np.uint8))
    restored = np.array([[[1.0, -1.0, -1.0]]], np.float32)
    assert image.finish(restored)[0, 0] == round(0.299 * 255)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_modes_that_are_kept(mode: str) -> None:
    random = np.random.default_rng(0)
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "I;16": ()}[mode]
    dtype = np.uint16 if mode == "I;16" else np.uint8
    values = random.integers(0, np.iinfo(dtype).max + 1, (5, 7, *channels)).astype(dtype)
    image = Image.fromarray(values)
    assert image.mode == mode
    result = round_trip(image)
    assert isinstance(result, Image.Image) and result.mode == mode
    np.testing.assert_array_equal(np.asarray(result), values)


def converted(mode: str) -> Image.Image:
    colors = Image.new("RGB", (4, 4), (200, 100, 50))
    if mode == "P with transparency":
        palette = colors.convert("P")
        palette.info["transparency"] = 0
        return palette
    if mode == "RGB with a transparent color":
        colors.info["transparency"] = (200, 100, 50)
        return colors
    if mode == "I":
        return Image.fromarray(np.full((4, 4), 40_000, np.int32))
    if mode == "F":
        return Image.fromarray(np.full((4, 4), 0.5, np.float32))
    if mode == "I;16B":
        return Image.frombytes("I;16B", (4, 4), np.full((4, 4), 40_000, ">u2").tobytes())
    return colors.convert(mode)


@pytest.mark.parametrize(
    ("mode", "result"),
    [
        ("1", "L"),
        ("P", "RGB"),
        ("P with transparency", "RGBA"),
        ("RGB with a transparent color", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("HSV", "RGB"),
        ("RGBX", "RGB"),
        ("La", "LA"),
        ("RGBa", "RGBA"),
        ("I", "I;16"),
        ("F", "I;16"),
        ("I;16B", "I;16"),
    ],
)
def test_modes_that_are_converted(mode: str, result: str) -> None:
    image = converted(mode)
    found = round_trip(image)
    assert found.mode == result and found.size == (4, 4)
    if mode in ("I", "I;16B"):
        assert np.asarray(found)[0, 0] == 40_000
    if mode == "F":
        assert np.asarray(found)[0, 0] == 32_768
    if result == "RGB":
        expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(np.asarray(found).astype(int) - expected).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int, tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "maker"
    image.save(tmp_path / "a.png", exif=exif)
    result = round_trip(tmp_path / "a.png")
    stored = np.asarray(image)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(np.asarray(result), upright)
    result.save(tmp_path / "b.png", exif=result.info["exif"])
    with Image.open(tmp_path / "b.png") as again:
        assert again.getexif().get(ORIENTATION, 1) == 1 and again.getexif()[0x010F] == "maker"


def test_malformed_exif_is_ignored() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert round_trip(Image.open(io.BytesIO(file.getvalue()))).size == (4, 4)


def test_color_profile_is_kept_except_for_cmyk() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, kept in (("RGB", True), ("L", True), ("CMYK", False)):
        image = Image.new(mode, (2, 2))
        image.info["icc_profile"] = profile
        assert ("icc_profile" in round_trip(image).info) is kept


def test_sixteen_bit_files(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1021 + 7
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(round_trip(tmp_path / name)), values)


def png16(path: Path, color_type: int, channels: int) -> Path:
    """Write a PNG of 16 bits per channel, which Pillow reads at 8 bits and cannot write."""
    import struct
    import zlib

    values = np.full((3, 4, channels), 0x80FF, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, color_type, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(("color_type", "channels", "mode"), [(2, 3, "RGB"), (6, 4, "RGBA"), (4, 2, "RGBA")])
def test_sixteen_bit_color_is_read_at_eight_with_a_warning(color_type, channels, mode, tmp_path) -> None:
    with pytest.warns(ImageWarning, match=r"deep\.png.*16 bits.*8 bits"):
        result = round_trip(png16(tmp_path / "deep.png", color_type, channels))
    assert result.mode == mode and np.asarray(result)[0, 0, 0] == 0x80


def test_only_the_first_frame_is_read_with_a_warning(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    with pytest.warns(ImageWarning, match=r"two\.tif.*2 frames"):
        assert round_trip(tmp_path / "two.tif").getpixel((0, 0)) == (255, 0, 0)


def test_ordinary_images_give_no_warning(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path / "a.jpg")


BAD_ARRAYS = [
    (np.zeros((0, 4, 3), np.uint8), r"no pixels.*\[0, 4, 3\]"),
    (np.zeros((4, 0), np.uint8), r"no pixels.*\[4, 0\]"),
    (np.zeros(4, np.uint8), r"not \[4\]"),
    (np.zeros((4, 4, 5), np.uint8), r"1 to 4 channels.*\[4, 4, 5\]"),
    (np.zeros((4, 4, 3), np.int32), "int32"),
    (np.zeros((4, 4), bool), "bool"),
    (np.full((4, 4), 255.0), r"0\.\.1.*255 to 255"),
    (np.full((4, 4), np.nan), r"0\.\.1.*nan"),
    (np.full((4, 4), -0.5, np.float32), r"0\.\.1.*-0\.5"),
    (3, "int"),
    (None, "NoneType"),
    (Image.new("RGB", (0, 4)), "no pixels.*0x4"),
    (Image.fromarray(np.full((2, 2), 70_000, np.int32)), r"0\.\.65535"),
    (Image.fromarray(np.full((2, 2), 7, np.float32)), r"0\.\.1$"),
]


@pytest.mark.parametrize(("source", "message"), BAD_ARRAYS)
def test_bad_sources(source, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read(source)


def test_bad_files(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    for suffix in ("jpg", "png", "tif", "webp"):
        whole = io.BytesIO()
        Image.fromarray(photo).save(whole, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
        (tmp_path / f"cut.{suffix}").write_bytes(whole.getvalue()[: len(whole.getvalue()) * 2 // 3])
        with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
            read(tmp_path / f"cut.{suffix}")
    for name, message in [
        ("none.png", r"no such file.*none\.png"),
        (".", "not a file"),
        ("text.png", r"not an image.*text\.png"),
        ("empty.png", r"not an image.*empty\.png"),
    ]:
        with pytest.raises(ImageError, match=message):
            read(str(tmp_path / name))


@given(position=st.integers(0, 5000), value=st.integers(0, 255), suffix=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF"]))
def test_damaged_files_are_read_or_refused(
    position: int, value: int, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 20)).save(file, suffix)
    raw = bytearray(file.getvalue())
    raw[position % len(raw)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
        except ImageError as error:
            assert "damaged" in str(error)
