"""Tiles: evenly spread, of one size, weighted so that nothing is counted twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.tiling import OVERLAP, blend_weights, check_tile, tile_starts, tiles

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
    assert (weights > 0).all()
    if len(weights) > 1:  # no step where a tile begins or ends
        ramp = tile // OVERLAP
        assert weights[1:, 0].max() <= 2 / (ramp + 1) and weights[:-1, -1].max() <= 2 / (ramp + 1)


@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_tiles_of_a_picture(height: int, width: int) -> None:
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
