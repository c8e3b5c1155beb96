"""Tiles: evenly spread, of one size, weighted so that nothing is counted twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dod_runtime.errors import UsageError
from dod_runtime.image.tiling import (
    DISCARDED,
    OVERLAP,
    blend_weights,
    check_tile,
    match_tone,
    reduce_image,
    restore_tiles,
    tile_starts,
    tiles,
)

lengths = st.integers(1, 3000)
sides = st.sampled_from([16, 64, 256, 1000])


@given(length=lengths, tile=sides)
def test_tiles_cover_an_axis_and_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    assert starts[0] == 0 and starts[-1] == max(0, length - tile)
    if len(starts) > 1:
        steps = np.diff(starts)
        assert np.ptp(steps) <= 1 and steps.max() <= tile - tile // OVERLAP
        assert len(starts) == 2 or (length - tile) / (len(starts) - 2) > tile - tile // OVERLAP  # no tile too many


@given(length=lengths, tile=sides)
def test_weights_sum_to_one_and_rise_over_the_overlap(length: int, tile: int) -> None:
    weights, total = blend_weights(length, tile), np.zeros(length)
    for start, weight in zip(tile_starts(length, tile), weights, strict=True):
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (weights >= 0).all()
    if len(weights) > 1:  # no step where a tile begins or ends, and nothing of its outermost pixels
        overlap = tile // OVERLAP
        discarded = min(DISCARDED, overlap // 4)
        largest = 2 / (overlap + 1 - 2 * discarded)
        assert weights[1:, : discarded + 1].max() <= largest and weights[:-1, -discarded - 1 :].max() <= largest
        assert not weights[1:, :discarded].any() and not weights[:-1, tile - discarded :].any()


@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_tiles_of_a_image(height: int, width: int) -> None:
    total = np.zeros((height, width))
    for rows, columns, weights in tiles(height, width, 64):
        assert weights.shape == (min(height, 64), min(width, 64)) and weights.dtype == np.float32
        total[rows, columns] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_which_tiles_a_bundle_takes() -> None:
    assert check_tile(None, 64, 256, 1000) == 960
    assert check_tile(512, 64, 256, 1000) == 512
    for tile, nearest in ((500, 512), (0, 256), (4096, 960), (-64, 256)):
        with pytest.raises(UsageError, match=f"tile {tile}: .* from 256 to 960 pixels; the nearest is {nearest}"):
            check_tile(tile, 64, 256, 1000)


def scene(height: int, width: int) -> np.ndarray:
    """An image whose tiles differ in brightness and contrast, with texture and an edge: float32 [1, 3, H, W]."""
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    texture = np.random.default_rng(0).standard_normal((3, height, width)) * (0.02 + 0.1 * columns)
    colours = np.array([0.9, 1, 1.1])[:, None, None] * (columns - 0.5 + 0.3 * np.cos(3 * rows))
    image = colours + texture + 0.3 * (rows + columns > 1.2)
    return np.clip(image, -1, 1)[None].astype(np.float32)


def normalize(images: np.ndarray) -> np.ndarray:
    """A stand-in for a network with instance normalization: its tone follows from all that it sees."""
    axes = (2, 3)
    return 0.4 * (images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True)


def untouched(images: np.ndarray, tile: int) -> np.ndarray:
    """`normalize` by tiles that are blended as they are."""
    restored = np.zeros_like(images)
    for rows, columns, weights in tiles(*images.shape[2:], tile):
        restored[:, :, rows, columns] += weights * normalize(images[:, :, rows, columns])
    return restored


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(4 / np.square(found - expected).mean()))


def reduced(images: np.ndarray, largest: int) -> np.ndarray:
    height, width = images.shape[2:]
    return reduce_image(images, min(height, largest), min(width, largest))


def largest_step(found: np.ndarray, expected: np.ndarray, tile: int) -> float:
    """The largest step in grey levels of `found - expected` between strips of 4 px, across columns where tiles end."""
    error = (found - expected).mean(axis=(0, 1)) * 127.5
    starts = tile_starts(error.shape[1], tile)
    borders = [*starts[1:], *(start + tile for start in starts[:-1])]
    sides = (np.stack([error[:, b - 4 : b].mean(1), error[:, b : b + 4].mean(1)]) for b in borders)
    return max(float(np.abs(np.diff(side.reshape(2, -1, 32).mean(2), axis=0)).max()) for side in sides)


@pytest.mark.parametrize("size", [(320, 512), (512, 128), (160, 300)])
def test_tiles_have_the_tone_of_the_whole(size: tuple[int, int]) -> None:
    images = np.concatenate([scene(*size), -0.5 * scene(*size)])
    expected = normalize(images)
    before, after = untouched(images, 128), restore_tiles(images, 128, normalize, normalize(reduced(images, 128)))
    assert psnr(before, expected) < 24 < 38 < psnr(after, expected)
    assert after.dtype == np.float32 and after.shape == images.shape
    if size == (320, 512):
        assert largest_step(before[:1], expected[:1], 128) > 5 > 2 > largest_step(after[:1], expected[:1], 128)


@pytest.mark.parametrize("guided", [True, False])
def test_every_tile_has_one_shape(guided: bool) -> None:
    images, shapes = scene(300, 100), []
    guide = reduced(images, 128) if guided else None
    found = restore_tiles(images, 128, lambda part: (shapes.append(part.shape), part)[1], guide)
    assert shapes == 3 * [(1, 3, 128, 100)]
    assert guided or np.abs(found - images).max() < 1e-5


@given(size=st.tuples(st.integers(1, 400), st.integers(65, 400)), seed=st.integers(0, 9))
def test_what_has_the_tone_of_the_guide_stays(size: tuple[int, int], seed: int) -> None:
    images = np.random.default_rng(seed).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    np.testing.assert_allclose(restore_tiles(images, 64, lambda part: part, reduced(images, 64)), images, atol=1e-5)


def test_gain_and_offset_are_taken_from_the_guide() -> None:
    tile, whole = scene(128, 128), scene(128, 128) * 0.7 + 0.2
    everything = slice(0, 128)
    found = match_tone(tile, reduce_image(whole, 64, 64), everything, everything, 128, 128)
    assert psnr(found, whole) > 35 > 20 > psnr(tile, whole)
    constant = np.full((1, 3, 128, 128), 0.5, np.float32)  # flat: an offset, exactly
    found = match_tone(constant, constant[..., ::2, ::2] - 0.25, everything, everything, 128, 128)
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


def test_means_over_areas() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_allclose(reduce_image(image, 3, 2), [[[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]])
    np.testing.assert_allclose(reduce_image(image, 2, 4)[0, 0], [4 / 3, 7 / 3, 10 / 3, 13 / 3], rtol=1e-6)
    assert reduce_image(image, 3, 4) is image
