"""Degradations: determinism, ranges, and agreement with the physical models they implement."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from dod.data.degradations import DEGRADATIONS, degrade, depth_map, rng_for
from dod.errors import DataError

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def coffee() -> Array:
    return data.coffee()[100:356, 150:470].astype(np.float32) / np.float32(255)


def test_names() -> None:
    assert DEGRADATIONS == ("haze", "rain", "noise", "blur", "low-light")


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_deterministic_per_seed(coffee: Array, name: str) -> None:
    first, _ = degrade(coffee, name, rng_for("coffee", name, 0))
    again, _ = degrade(coffee, name, rng_for("coffee", name, 0))
    other, _ = degrade(coffee, name, rng_for("coffee", name, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(256, 320), (33, 17), (1, 5), (1, 1)])
def test_dtype_range_and_uint8_levels(coffee: Array, name: str, shape: tuple[int, int]) -> None:
    image = coffee[: shape[0], : shape[1]].copy()
    before = image.copy()
    degraded, _ = degrade(image, name, np.random.default_rng(3))
    assert degraded.dtype == np.float32 and degraded.shape == image.shape
    assert degraded.min() >= 0 and degraded.max() <= 1
    assert np.array_equal(degraded, np.rint(degraded * 255).astype(np.uint8) / np.float32(255))
    assert np.array_equal(image, before), "the clean image was modified"


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_returned_parameters_repeat_the_result(coffee: Array, name: str) -> None:
    degraded, parameters = degrade(coffee, name, np.random.default_rng(5))
    again, same = degrade(coffee, name, np.random.default_rng(5), **parameters)
    assert np.array_equal(degraded, again)
    assert all(np.array_equal(parameters[key], same[key]) for key in parameters)


def test_a_fixed_parameter_leaves_the_others_as_drawn(coffee: Array) -> None:
    _, drawn = degrade(coffee, "rain", np.random.default_rng(7))
    _, fixed = degrade(coffee, "rain", np.random.default_rng(7), angle=12.0)
    assert fixed.pop("angle") == 12.0 != drawn.pop("angle")
    assert fixed == drawn


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("haze", 7, 25), ("rain", 18, 36), ("noise", 12, 49), ("blur", 18, 45), ("low-light", 4, 15)],
)
def test_psnr_band(coffee: Array, name: str, low: float, high: float) -> None:
    values = [
        peak_signal_noise_ratio(coffee, degrade(coffee, name, rng_for("coffee", name, seed))[0], data_range=1)
        for seed in range(12)
    ]
    assert low < min(values) and max(values) < high


@pytest.mark.parametrize("sigma", [15.0, 25.0, 50.0])
def test_noise_is_truncated_gaussian(sigma: float) -> None:
    grey = np.full((256, 256, 3), 127 / 255, dtype=np.float32)
    noisy, parameters = degrade(grey, "noise", np.random.default_rng(0), sigma=sigma)
    clipped = np.clip(127 + sigma * np.random.default_rng(1).standard_normal(200_000), 0, 255)
    assert parameters == {"sigma": sigma}
    assert np.std(noisy * 255) == pytest.approx(np.std(np.floor(clipped)), rel=0.02)
    assert np.mean(noisy * 255) == pytest.approx(126.5, abs=0.5)


def test_haze_equation_inverts(coffee: Array) -> None:
    depth = np.linspace(0.1, 1, coffee.shape[0], dtype=np.float32)[:, None].repeat(coffee.shape[1], axis=1)
    hazy, _ = degrade(coffee, "haze", np.random.default_rng(0), beta=1.2, airlight=0.9, depth=depth)
    transmission = np.exp(-1.2 * depth)[..., None]
    recovered = (hazy - 0.9 * (1 - transmission)) / transmission
    assert np.abs(recovered - coffee).max() <= 0.51 / 255 / transmission.min()


def test_depth_of_a_crop_is_a_window_of_a_scene() -> None:
    rng = np.random.default_rng(0)
    whole = [depth_map((512, 640), rng) for _ in range(8)]
    crops = [depth_map((64, 64), rng) for _ in range(8)]
    assert all(depth.min() >= 0.1 - 1e-6 and depth.max() <= 1 + 1e-6 for depth in whole + crops)
    assert np.mean([np.ptp(depth) for depth in whole]) > 0.8
    assert np.mean([np.ptp(depth) for depth in crops]) < 0.4
    assert np.mean([depth[:100].mean() - depth[-100:].mean() for depth in whole]) > 0.3, (
        "the top is not the farthest part"
    )


def test_low_light_noise_follows_the_signal() -> None:
    grey = np.full((256, 256, 3), 0.5, dtype=np.float32)
    fixed = {"exposure": 0.4, "gamma": 1.0, "shot": 0.0015, "read": 0.005}
    dark, _ = degrade(grey, "low-light", np.random.default_rng(0), **fixed)
    assert dark.mean() == pytest.approx(0.2, abs=0.002)
    assert dark.std() == pytest.approx(np.sqrt(0.0015 * 0.2 + 0.005**2 + 1 / 12 / 255**2), rel=0.03)


def test_rain_only_adds_light(coffee: Array) -> None:
    rainy, _ = degrade(coffee, "rain", np.random.default_rng(0), veil=0.0)
    assert (rainy >= coffee - 0.51 / 255).all()


def test_generators_are_independent_of_each_other() -> None:
    draws = {
        rng_for(name, degradation, seed).random()
        for name in ("a", "b")
        for degradation in DEGRADATIONS
        for seed in (0, 1)
    }
    assert len(draws) == 20
    assert rng_for("a", "haze", 0).random() in draws


@pytest.mark.parametrize(
    ("name", "fixed", "message"),
    [
        ("fog", {}, "'fog'.* haze, rain, noise, blur, low-light"),
        ("noise", {"sigmas": 3.0}, "noise.* 'sigmas'.* sigma"),
        ("blur", {"kernel": np.ones((4, 4), np.float32)}, r"odd side.* \[4, 4\]"),
        ("haze", {"depth": np.ones((4, 4), np.float32)}, r"\[8, 8\].* \[4, 4\]"),
    ],
)
def test_bad_request(name: str, fixed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        degrade(np.zeros((8, 8, 3), np.float32), name, np.random.default_rng(0), **fixed)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"float32.* uint8 \[8, 8, 3\]"),
        (np.zeros((8, 8), np.float32), r"float32 \[8, 8\]"),
        (np.zeros((0, 8, 3), np.float32), r"float32 \[0, 8, 3\]"),
        (np.full((8, 8, 3), 255, np.float32), "0 and 1.* 255"),
        (np.full((8, 8, 3), np.nan, np.float32), "0 and 1.* nan"),
    ],
)
def test_bad_image(image: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        degrade(image, "haze", np.random.default_rng(0))
