"""Augmentations of clean crops: mist stays away from near parts, orientations occur and agree."""

from __future__ import annotations

import numpy as np

from dod.data.augmentations import add_mist, random_orientation


def test_mist_spares_near_parts() -> None:
    image = np.random.default_rng(0).random((512, 512, 3), dtype=np.float32)
    bluish = 0
    for seed in range(30):
        found = add_mist(image, np.random.default_rng(seed))
        clear = (np.abs(found - image) < 1e-6).all(2)
        assert found.min() >= 0 and found.max() <= 1 and 0.02 < clear.mean() < 0.98
        assert found[~clear].std() < image[~clear].std()
        red, green, blue = (found - image)[~clear].mean(0)
        bluish += blue > green > red
    assert 15 < bluish < 30


def test_windows_are_oriented_alike_in_all_eight_ways() -> None:
    first = np.random.default_rng(0).integers(0, 127, (8, 8, 3), dtype=np.uint8)
    found = set()
    for seed in range(80):
        one, other = random_orientation(np.random.default_rng(seed), first, first + 1)
        np.testing.assert_allclose(other - one, 1 / 255, atol=1e-6)
        found.add(one.tobytes())
    assert len(found) == 8
