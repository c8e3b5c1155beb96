"""PSNR and SSIM compared with scikit-image, and images that cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dod.errors import DataError
from dod.evaluation.metrics import core_values, psnr, ssim


def noisy(seed: int, shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_metrics_agree_with_scikit_image(seed: int) -> None:
    a, b = noisy(seed), noisy(seed + 1)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b / 255.0, a / 255.0, data_range=1), abs=1e-9)
    expected = structural_similarity(a / 255.0, b / 255.0, data_range=1, channel_axis=2)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_known_values() -> None:
    black, grey = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))  # 51 is a fifth of 255
    assert psnr(grey, grey) == math.inf and ssim(grey, grey) == 1
    assert psnr(grey.astype(np.float32) / np.float32(255), black) == pytest.approx(psnr(grey, black), abs=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (noisy(0), noisy(0, (20, 31, 3)), "30x20 and 31x20"),
        (noisy(0).astype(np.float32), noisy(1), "float in 0..1"),
        (noisy(0).astype(np.int64), noisy(1), "int64"),
        (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 3)), "0..1"),
        (noisy(0, (6, 30, 3)), noisy(1, (6, 30, 3)), "7x7"),
    ],
)
def test_images_that_cannot_be_compared(a: np.ndarray, b: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        core_values("street", a, b)
    assert str(caught.value).startswith("street: ")
