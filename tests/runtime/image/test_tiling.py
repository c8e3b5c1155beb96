"""Tiles: evenly spread, of one size, with weights that sum to 1 and without borders in the result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dod_runtime.errors import UsageError
from dod_runtime.image.geometry import MARGIN, pad
from dod_runtime.image.tiling import (
    DISCARDED,
    OVERLAP,
    blend_weights,
    check_tile_size,
    restore_guide,
    restore_tiles,
    tile_starts,
    tiles,
)
from dod_runtime.image.tone import reduce_image
from tests.runtime.image.scenes import normalize, psnr, reduced, scene

lengths = st.integers(1, 3000)
sides = st.sampled_from([16, 64, 256, 1000])


@given(length=lengths, tile_size=sides)
def test_tiles_cover_an_axis_and_overlap(length: int, tile_size: int) -> None:
    starts = tile_starts(length, tile_size)
    assert starts[0] == 0 and starts[-1] == max(0, length - tile_size)
    if len(starts) > 1:
        steps = np.diff(starts)
        assert np.ptp(steps) <= 1 and steps.max() <= tile_size - tile_size // OVERLAP
        # One tile less would not cover the axis.
        assert len(starts) == 2 or (length - tile_size) / (len(starts) - 2) > tile_size - tile_size // OVERLAP


@given(length=lengths, tile_size=sides)
def test_weights_sum_to_one_and_rise_over_the_overlap(length: int, tile_size: int) -> None:
    weights, total = blend_weights(length, tile_size), np.zeros(length)
    for start, weight in zip(tile_starts(length, tile_size), weights, strict=True):
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (weights >= 0).all()
    if len(weights) > 1:  # no step where a tile begins or ends, weight 0 in its outermost pixels
        overlap = tile_size // OVERLAP
        discarded = min(DISCARDED, overlap // 4)
        largest = 2 / (overlap + 1 - 2 * discarded)
        assert weights[1:, : discarded + 1].max() <= largest and weights[:-1, -discarded - 1 :].max() <= largest
        assert not weights[1:, :discarded].any() and not weights[:-1, tile_size - discarded :].any()


@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_tiles_of_an_image(height: int, width: int) -> None:
    total = np.zeros((height, width))
    for rows, columns, weights in tiles(height, width, 64):
        assert weights.shape == (min(height, 64), min(width, 64)) and weights.dtype == np.float32
        total[rows, columns] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_check_tile_size() -> None:
    assert check_tile_size(None, 64, 256, 1000) == 960
    assert check_tile_size(512, 64, 256, 1000) == 512
    for tile_size, nearest in ((500, 512), (0, 256), (4096, 960), (-64, 256)):
        with pytest.raises(UsageError, match=f"{tile_size}.* 256 to 960 px.* {nearest}"):
            check_tile_size(tile_size, 64, 256, 1000)


def untouched(images: np.ndarray, tile_size: int) -> np.ndarray:
    """Normalize images in tiles that are blended without matching their tone."""
    restored = np.zeros_like(images)
    for rows, columns, weights in tiles(*images.shape[2:], tile_size):
        restored[:, :, rows, columns] += weights * normalize(images[:, :, rows, columns])
    return restored


def largest_step(found: np.ndarray, expected: np.ndarray, tile_size: int) -> float:
    """Return the largest step of the error in grey levels across the columns where tiles begin or end.

    The error is averaged over blocks of 4 columns on each side and 32 rows.
    """
    error = (found - expected).mean(axis=(0, 1)) * 127.5
    starts = tile_starts(error.shape[1], tile_size)
    borders = [*starts[1:], *(start + tile_size for start in starts[:-1])]
    sides = (np.stack([error[:, b - 4 : b].mean(1), error[:, b : b + 4].mean(1)]) for b in borders)
    return max(float(np.abs(np.diff(side.reshape(2, -1, 32).mean(2), axis=0)).max()) for side in sides)


@pytest.mark.parametrize("size", [(320, 512), (512, 128), (160, 300)])
def test_tiles_have_the_tone_of_the_whole_image(size: tuple[int, int]) -> None:
    images = np.concatenate([scene(*size), -0.5 * scene(*size)])
    expected = normalize(images)
    before, after = untouched(images, 128), restore_tiles(images, 128, normalize, normalize(reduced(images, 128)))
    assert psnr(before, expected) < 24 < 38 < psnr(after, expected)
    assert after.dtype == np.float32 and after.shape == images.shape
    if size == (320, 512):
        assert largest_step(before[:1], expected[:1], 128) > 5 > 2 > largest_step(after[:1], expected[:1], 128)


@pytest.mark.parametrize("guided", [True, False])
def test_all_tiles_have_one_shape(guided: bool) -> None:
    images, shapes = scene(300, 100), []
    guide = reduced(images, 128) if guided else None
    found = restore_tiles(images, 128, lambda part: (shapes.append(part.shape), part)[1], guide)
    assert shapes == 3 * [(1, 3, 128, 100)]
    assert guided or np.abs(found - images).max() < 1e-5


@given(size=st.tuples(st.integers(1, 400), st.integers(65, 400)), seed=st.integers(0, 9))
def test_tiles_with_the_tone_of_the_guide_do_not_change(size: tuple[int, int], seed: int) -> None:
    images = np.random.default_rng(seed).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    np.testing.assert_allclose(restore_tiles(images, 64, lambda part: part, reduced(images, 64)), images, atol=1e-5)


def test_guide_is_as_large_as_the_graphs_allow() -> None:
    height, width, seen = 200, 600, []
    pixels = scene(height, width)[0].transpose(1, 2, 0)
    images = pad(pixels, height + 2 * MARGIN, width + 2 * MARGIN, MARGIN, MARGIN).transpose(2, 0, 1)[None]

    def restore(part: np.ndarray) -> np.ndarray:
        seen.append(part.shape)
        return part

    guide = restore_guide(images, restore, multiple=64, min_size=64, tile_size=128, max_size=512)
    assert seen == [(1, 3, 256, 512)]  # 200 px with margins, and 600 px reduced
    np.testing.assert_allclose(guide, reduce_image(images, height + 2 * MARGIN, 512), atol=1e-6)
