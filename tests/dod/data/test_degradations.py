from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from dod.data.degradations import DEGRADATIONS, degrade, depth_map, rng_for
from dod.data.kernels import convolve, defocus_kernel, motion_kernel, random_kernel, streaks
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
def test_kind_range_and_uint8_steps(coffee: Array, name: str, shape: tuple[int, int]) -> None:
    image = coffee[: shape[0], : shape[1]].copy()
    before = image.copy()
    degraded, _ = degrade(image, name, np.random.default_rng(3))
    assert degraded.dtype == np.float32 and degraded.shape == image.shape
    assert degraded.min() >= 0 and degraded.max() <= 1
    assert np.array_equal(degraded, np.rint(degraded * 255).astype(np.uint8) / np.float32(255))
    assert np.array_equal(image, before), "the clean image was written to"


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
    figures = [
        peak_signal_noise_ratio(coffee, degrade(coffee, name, rng_for("coffee", name, seed))[0], data_range=1)
        for seed in range(12)
    ]
    assert low < min(figures) and max(figures) < high


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
    assert np.mean([depth[:100].mean() - depth[-100:].mean() for depth in whole]) > 0.3, "the top is not far"


def test_low_light_noise_follows_the_signal() -> None:
    grey = np.full((256, 256, 3), 0.5, dtype=np.float32)
    fixed = {"exposure": 0.4, "gamma": 1.0, "shot": 0.0015, "read": 0.005}
    dark, _ = degrade(grey, "low-light", np.random.default_rng(0), **fixed)
    assert dark.mean() == pytest.approx(0.2, abs=0.002)
    assert dark.std() == pytest.approx(np.sqrt(0.0015 * 0.2 + 0.005**2 + 1 / 12 / 255**2), rel=0.03)


def test_rain_falls_along_its_angle() -> None:
    field = streaks((256, 256), np.random.default_rng(0), angle=0.0, length=40.0, width=1.0, density=2.0)
    along, across = np.abs(np.diff(field, axis=0)).mean(), np.abs(np.diff(field, axis=1)).mean()
    assert across > 4 * along
    assert field.min() >= 0 and 0.5 < field.max() <= 1
    assert 0.02 < (field > 0.1).mean() < 0.4


def test_rain_only_adds_light(coffee: Array) -> None:
    rainy, _ = degrade(coffee, "rain", np.random.default_rng(0), veil=0.0)
    assert (rainy >= coffee - 0.51 / 255).all()


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
        ("fog", {}, "unknown degradation 'fog': it is one of haze, rain, noise, blur, low-light"),
        ("noise", {"sigmas": 3.0}, "noise has no parameter 'sigmas': it has sigma"),
        ("blur", {"kernel": np.ones((4, 4), np.float32)}, r"square with an odd side, not \[4, 4\]"),
        ("haze", {"depth": np.ones((4, 4), np.float32)}, r"depth must be \[H, W\] = \[8, 8\]"),
    ],
)
def test_bad_request(name: str, fixed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        degrade(np.zeros((8, 8, 3), np.float32), name, np.random.default_rng(0), **fixed)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"float32 image \[H, W, 3\], got uint8 \[8, 8, 3\]"),
        (np.zeros((8, 8), np.float32), r"got float32 \[8, 8\]"),
        (np.zeros((0, 8, 3), np.float32), r"got float32 \[0, 8, 3\]"),
        (np.full((8, 8, 3), 255, np.float32), "values between 0 and 1, got 255 to 255"),
        (np.full((8, 8, 3), np.nan, np.float32), "values between 0 and 1, got nan to nan"),
    ],
)
def test_bad_image(image: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        degrade(image, "haze", np.random.default_rng(0))
