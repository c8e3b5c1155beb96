"""Matching of tone between a tile and the guide, and area averaging."""

from __future__ import annotations

import numpy as np

from dod_runtime.image.tone import match_tone, reduce_image
from tests.runtime.image.scenes import psnr, scene

WHOLE = slice(0, 128)


def test_gain_and_offset_are_those_of_the_guide() -> None:
    tile, whole = scene(128, 128), scene(128, 128) * 0.7 + 0.2
    found = match_tone(tile, reduce_image(whole, 64, 64), WHOLE, WHOLE, 128, 128)
    assert psnr(found, whole) > 35 > 20 > psnr(tile, whole)


def test_a_flat_tile_gets_an_offset_alone() -> None:
    flat = np.full((1, 3, 128, 128), 0.5, np.float32)
    found = match_tone(flat, flat[..., ::2, ::2] - 0.25, WHOLE, WHOLE, 128, 128)
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


def test_area_averaging() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_allclose(reduce_image(image, 3, 2), [[[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]])
    np.testing.assert_allclose(reduce_image(image, 2, 4)[0, 0], [4 / 3, 7 / 3, 10 / 3, 13 / 3], rtol=1e-6)
    assert reduce_image(image, 3, 4) is image
