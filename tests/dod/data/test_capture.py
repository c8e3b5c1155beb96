"""Captures: each part has its stated effect, and the neutral capture has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.data.capture import SHARP, Capture, gaussian_blur, jpeg, random_capture, record, resize, soften
from dod.data.dataset import PhotographCrops


def noise(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def test_a_sharp_capture_changes_nothing_but_rounds_to_levels() -> None:
    image = noise()
    assert np.array_equal(soften(image, SHARP), image)
    recorded = record(image, SHARP, np.random.default_rng(0))
    assert np.abs(recorded - image).max() <= 0.5 / 255 + 1e-6
    assert np.allclose(recorded * 255, np.rint(recorded * 255), atol=1e-4)


def test_blur_is_a_gaussian_convolution() -> None:
    image, sigma = noise(33, 21), 1.3
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(image.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    expected = np.zeros(image.shape)
    for y in range(2 * reach + 1):
        for x in range(2 * reach + 1):
            expected += kernel[y, x] * padded[y : y + 33, x : x + 21]
    assert np.allclose(gaussian_blur(image, sigma), expected, atol=1e-5)


def test_resizing_has_the_requested_size_and_filter() -> None:
    image = noise(40, 56)
    assert soften(image, Capture(scale=1.5)).shape == (60, 84, 3)
    assert soften(image, Capture(scale=1.5), (64, 64)).shape == (64, 64, 3)
    halved = resize(image, (20, 28), Image.Resampling.BOX)
    assert np.allclose(halved, image.reshape(20, 2, 28, 2, 3).mean((1, 3)), atol=1e-5)
    assert soften(noise(), Capture(scale=2, kernel=Image.Resampling.LANCZOS)).max() <= 1, "overshoot is not clipped"


def test_noise_and_jpeg_have_their_strength() -> None:
    grey = np.full((128, 128, 3), 0.5, np.float32)
    noisy = record(grey, Capture(noise=4), np.random.default_rng(1))
    assert (noisy * 255).std() == pytest.approx(4, rel=0.05)
    pixels = (noise(64, 64) * 255).astype(np.uint8)
    errors = [np.square(jpeg(pixels, quality, subsampled=False).astype(float) - pixels).mean() for quality in (60, 95)]
    assert errors[0] > 2 * errors[1] > 0


def test_captures_cover_their_ranges() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_capture(rng) for _ in range(400)]
    scales, blurs = ([getattr(each, name) for each in drawn] for name in ("scale", "blur"))
    noises = [each.noise for each in drawn if each.noise]
    qualities = [each.quality for each in drawn if each.quality is not None]
    assert min(scales) < 0.6 and max(scales) > 2.7 and 0.3 < np.mean(np.array(scales) == 1) < 0.7
    assert 1.8 < max(blurs) <= 2 and min(noises) >= 0.5 and 3.5 < max(noises) <= 4
    assert min(qualities) < 65 and max(qualities) > 92 and 80 < len(qualities) < 190


@pytest.mark.parametrize("name", ["haze", "rain", "noise", "blur", "low-light"])
def test_soft_samples_are_soft_in_the_reference_too(name: str) -> None:
    where = Path(__file__).parents[3] / "docs" / "samples" / "clean"
    sharp = PhotographCrops(where, 64, 3, (name,), 0.0)
    soft = PhotographCrops(where, 64, 3, (name,), 0.0, soft=1.0)
    pairs = [soft[i] for i in range(24)]
    for i, (degraded, clean, _) in enumerate(pairs):
        assert degraded.shape == clean.shape == (3, 64, 64) and degraded.abs().max() <= 1 and clean.abs().max() <= 1
        levels = ((degraded + 1) * 127.5).numpy()
        assert np.allclose(levels, np.rint(levels), atol=1e-3), "the degraded image is not on uint8 levels"
        again = soft[i]
        assert np.array_equal(again[0], degraded) and np.array_equal(again[1], clean)

    def detail(clean: np.ndarray) -> float:
        return float(np.abs(np.diff(clean, axis=-1)).mean())

    softer = np.mean([detail(clean.numpy()) for _, clean, _ in pairs])
    assert softer < 0.9 * np.mean([detail(sharp[i][1].numpy()) for i in range(24)])
    assert soft.identity["soft"] == 1.0 and sharp.identity["soft"] == 0.0
