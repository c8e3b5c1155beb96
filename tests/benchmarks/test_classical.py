"""The classical methods: comparison with closed forms, and PSNR gains on photographs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage import data

from benchmarks.classical import (
    CLASSICAL_METHODS,
    dark_channel_prior,
    guided_filter,
    horizontal_median,
    levels_and_gamma,
    noise_level,
    restore_classically,
    richardson_lucy,
)
from dod.data.degradations import DEGRADATIONS, blur, degrade, rng_for
from dod.data.images import centre_crop
from dod.evaluation.metrics import psnr


def photograph(size: int = 128) -> np.ndarray:
    return np.ascontiguousarray(centre_crop(data.chelsea(), size)).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("sigma", [5, 15, 25])
def test_noise_level_is_estimated(sigma: int) -> None:
    noisy = 0.5 + sigma / 255 * np.random.default_rng(0).standard_normal((128, 128, 3), np.float32)
    assert 255 * noise_level(noisy) == pytest.approx(sigma, rel=0.03)
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[:, None, None] * np.ones((1, 64, 3), np.float32)
    assert 255 * noise_level(ramp) < 0.1


@pytest.mark.parametrize("name", ["noise", "haze", "blur", "low-light"])
def test_methods_raise_psnr(name: str) -> None:
    truth = photograph(192)
    fixed = {"noise": {"sigma": 25.0}, "haze": {"beta": 1.0, "airlight": 0.9}, "blur": {"kernel": gaussian(1.5)}}
    degraded, _ = degrade(truth, name, rng_for("chelsea", name, 0), **fixed.get(name, {}))
    pixels = np.rint(degraded * 255).astype(np.uint8)
    assert psnr(restore_classically(pixels, name), truth) > psnr(pixels, truth) + (0.5 if name == "blur" else 3)


def gaussian(sigma: float) -> np.ndarray:
    steps = np.arange(-6, 7)
    line = np.exp(-(steps**2) / (2 * sigma**2))
    return (np.outer(line, line) / line.sum() ** 2).astype(np.float32)


def test_median_removes_a_streak() -> None:
    image = np.full((20, 20, 3), 0.25, np.float32)
    rainy = image.copy()
    rainy[:, 8:12] = 1
    np.testing.assert_array_equal(horizontal_median(rainy), image)


def test_dark_channel_prior_inverts_the_scattering_model() -> None:
    """The prior recovers J exactly if every window has a black pixel, depth is constant and the airlight is visible."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(0, 1, (96, 96, 3)).astype(np.float32)
    scene[::2, ::2] = 0
    airlight = np.array([0.9, 0.85, 0.8], np.float32)
    hazy = scene * 0.5 + airlight * 0.5
    hazy[:8, :8] = airlight
    found = dark_channel_prior(hazy, window=5, omega=1)
    assert np.abs(found - scene)[40:, 40:].max() < 0.05
    assert np.abs(hazy - scene)[40:, 40:].max() > 0.4


def test_guided_filter_equals_its_definition() -> None:
    """The definition is a ridge regression in each window, averaged over the windows of a pixel."""
    rng = np.random.default_rng(0)
    guide, image = rng.random((2, 11, 11)).astype(np.float64)
    fits = {}
    for row in range(1, 10):
        for column in range(1, 10):
            window = np.s_[row - 1 : row + 2, column - 1 : column + 2]
            x, y = guide[window].ravel(), image[window].ravel()
            left = np.vstack([np.stack([x, np.ones(9)], 1), [np.sqrt(9 * 0.1), 0]])
            fits[row, column] = np.linalg.lstsq(left, np.append(y, 0), rcond=None)[0]
    around = [fits[5 + i, 5 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    expected = np.mean([slope * guide[5, 5] + level for slope, level in around])
    assert guided_filter(guide, image, 1, 0.1)[5, 5] == pytest.approx(expected, abs=1e-9)


def test_richardson_lucy_sharpens_a_gaussian_blur() -> None:
    truth = photograph(96)
    blurred, _ = blur(truth, np.random.default_rng(0), kernel=gaussian(1.25))
    errors = [np.square(richardson_lucy(blurred, 1.25, n) - truth).mean() for n in (0, 2, 10)]
    assert errors[0] > errors[1] > errors[2]
    once = richardson_lucy(blurred, 1.25, 1)[40:56, 40:56, 1]
    kernel = gaussian(1.25)
    ratio = blurred[..., 1] / convolve2d(blurred[..., 1], kernel, "same", "symm")
    expected = blurred[..., 1] * convolve2d(ratio, kernel, "same", "symm")
    np.testing.assert_allclose(once, expected[40:56, 40:56], atol=1e-3)


def test_levels_brighten_a_dark_image() -> None:
    truth = photograph()
    dark = truth * np.float32(0.2)
    np.testing.assert_allclose(levels_and_gamma(dark), levels_and_gamma(truth), atol=1e-5)
    assert levels_and_gamma(dark).max() == 1 and levels_and_gamma(np.zeros_like(truth)).max() == 0


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images_stay_flat(value: int) -> None:
    assert set(CLASSICAL_METHODS) == set(DEGRADATIONS)
    for name in CLASSICAL_METHODS:
        restored = restore_classically(np.full((32, 24, 3), value, np.uint8), name)
        assert restored.shape == (32, 24, 3) and restored.std() == 0, name
