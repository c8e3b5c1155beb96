"""Blur kernels and rain streaks: mass, centre, length, direction; convolution against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from dod.data.kernels import convolve, defocus_kernel, motion_kernel, random_kernel, streaks


def test_rain_falls_along_its_angle() -> None:
    field = streaks((256, 256), np.random.default_rng(0), angle=0.0, length=40.0, width=1.0, density=2.0)
    along, across = np.abs(np.diff(field, axis=0)).mean(), np.abs(np.diff(field, axis=1)).mean()
    assert across > 4 * along
    assert field.min() >= 0 and 0.5 < field.max() <= 1
    assert 0.02 < (field > 0.1).mean() < 0.4


@pytest.mark.parametrize("seed", range(20))
def test_kernels_sum_to_one_around_their_centre(seed: int) -> None:
    kernel = random_kernel(np.random.default_rng(seed))
    offsets = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    assert kernel.shape[0] % 2 == 1 and kernel.shape[0] == kernel.shape[1]
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel.sum(axis=0) @ offsets == pytest.approx(0, abs=1e-4)
    assert kernel.sum(axis=1) @ offsets == pytest.approx(0, abs=1e-4)


def test_motion_kernel_has_its_length_and_direction() -> None:
    horizontal = motion_kernel(9, 0)
    assert horizontal.shape == (9, 9)
    assert horizontal[4].sum() == pytest.approx(1)
    assert np.allclose(motion_kernel(9, 90), horizontal.T, atol=1e-6)
    assert np.allclose(np.flipud(motion_kernel(9, 30)), motion_kernel(9, -30), atol=1e-6)


def test_defocus_disc_has_its_area() -> None:
    disc = defocus_kernel(4.0)
    assert 1 / disc.max() == pytest.approx(np.pi * 16, rel=0.03)


def test_convolution_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((7, 9, 3), dtype=np.float32)
    kernel = rng.random((5, 5), dtype=np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = np.zeros_like(image)
    for y in range(7):
        for x in range(9):
            expected[y, x] = np.einsum("ijc,ij->c", padded[y : y + 5, x : x + 5], kernel[::-1, ::-1])
    assert np.allclose(convolve(image, kernel), expected, atol=1e-5)
