"""Padding, margins and crops for every size from 1x1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dod_runtime.errors import ImageError
from dod_runtime.image.geometry import MARGIN, crop_indices, crops, pad, padded_size, reflect_indices, with_margins

lengths = st.integers(1, 200)


@given(length=lengths, extended=lengths)
def test_reflection_is_that_of_numpy(length: int, extended: int) -> None:
    found = reflect_indices(length, extended)
    expected = np.pad(np.arange(length), (0, max(0, extended - length)), "reflect" if length > 1 else "edge")
    np.testing.assert_array_equal(found, expected[:extended])


@given(length=st.integers(2, 60), before=st.integers(0, 40), after=st.integers(0, 40))
def test_reflection_on_both_sides_is_that_of_numpy(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), "reflect")
    np.testing.assert_array_equal(reflect_indices(length, before + length + after, before), expected)


@given(length=st.integers(1, 1100), multiple=st.sampled_from([8, 16, 64]), min_size=st.integers(1, 300))
def test_margins_use_the_room_of_a_tile(length: int, multiple: int, min_size: int) -> None:
    padded = with_margins(length, multiple, min_size, 1024)
    assert (padded - length) // 2 >= (MARGIN if length > 1024 else min(MARGIN, (1024 - length) // 2))
    assert padded == length + 2 * MARGIN if length > 1024 else padded % multiple == 0 and padded <= 1024


@given(length=st.integers(1, 1024), multiple=st.sampled_from([8, 16, 64]), min_size=st.integers(1, 300))
def test_padded_size_is_the_smallest_valid_one(length: int, multiple: int, min_size: int) -> None:
    padded = padded_size(length, multiple, min_size, 1024)
    assert padded % multiple == 0 and padded >= max(length, min_size)
    assert padded - multiple < max(length, min_size)


def test_images_that_are_too_large() -> None:
    with pytest.raises(ImageError, match=r"1025 px .*at most 1024 px.*--max-size 1088"):
        padded_size(1025, 64, 256, 1024)
    with pytest.raises(ImageError, match="at most 960"):
        padded_size(970, 64, 256, 1000)


@given(height=st.integers(1, 40), width=st.integers(1, 40), more=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_pad_keeps_the_image(height: int, width: int, more: tuple[int, int]) -> None:
    image = np.arange(height * width * 3).reshape(height, width, 3)
    padded = pad(image, height + more[0], width + more[1])
    assert padded.shape == (height + more[0], width + more[1], 3)
    np.testing.assert_array_equal(padded[:height, :width], image)
    np.testing.assert_array_equal(padded[:, :width], pad(padded[:, :width][:height], height + more[0], width))


@given(length=lengths, size=st.integers(1, 64), grid=st.integers(1, 4))
def test_crops_are_evenly_spread(length: int, size: int, grid: int) -> None:
    indices = crop_indices(length, grid, size)
    assert indices.shape == (grid, size) and indices.min() >= 0 and indices.max() < length
    if length < size:
        np.testing.assert_array_equal(indices, np.tile(reflect_indices(length, size), (grid, 1)))
        return
    starts = indices[:, 0]
    np.testing.assert_array_equal(indices, starts[:, None] + np.arange(size))
    if grid > 1:
        assert starts[0] == 0 and starts[-1] == length - size
        assert np.ptp(np.diff(starts)) <= 1
    else:
        assert starts[0] == (length - size) // 2


@given(height=st.integers(1, 50), width=st.integers(1, 50), grid=st.integers(1, 3))
def test_crops_are_pixels_of_the_image(height: int, width: int, grid: int) -> None:
    random = np.random.default_rng(height * 100 + width)
    image = random.standard_normal((height, width, 3)).astype(np.float32)
    found = crops(image, grid * grid, 16)
    assert found.shape == (grid * grid, 3, 16, 16) and found.dtype == np.float32
    rows, columns = crop_indices(height, grid, 16), crop_indices(width, grid, 16)
    for i in range(grid):
        for j in range(grid):
            np.testing.assert_array_equal(found[i * grid + j], image[np.ix_(rows[i], columns[j])].transpose(2, 0, 1))


def test_training_takes_the_same_crops() -> None:
    pytest.importorskip("torch")
    from dod.model import modulation

    for length in (1, 2, 5, 15, 16, 17, 40, 101):
        for per_axis in (1, 2, 3):
            expected = np.array(modulation.crop_indices(length, per_axis, 16))
            np.testing.assert_array_equal(crop_indices(length, per_axis, 16), expected)
