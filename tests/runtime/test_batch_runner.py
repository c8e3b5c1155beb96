"""Images of every size: padding, margins, batches and tiles, on the real ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dod_runtime import Bundle, ImageError, Restorer


@pytest.fixture(scope="module")
def restorer(toy: Bundle) -> Iterator[Restorer]:
    with Restorer(toy, backend="onnxruntime_cpu", num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def same(identity: Bundle) -> Iterator[Restorer]:
    with Restorer(identity, backend="onnxruntime_cpu", num_threads=1) as opened:
        yield opened


@given(height=st.integers(1, 128), width=st.integers(1, 128), condition=st.sampled_from(["auto", "haze"]))
@settings(max_examples=40)
def test_any_size_comes_back_whole(height: int, width: int, condition: str, same: Restorer) -> None:
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(same.restore(image, condition), image)


@pytest.mark.parametrize("size", [(1, 1), (1, 128), (128, 1), (128, 128), (31, 33)])
def test_extreme_sizes(size: tuple[int, int], same: Restorer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(same.restore(image), image)


def test_crops_are_taken_before_padding(restorer: Restorer, photo: np.ndarray) -> None:
    whole = restorer.prepare(photo)
    assert whole.crops is not None and whole.crops.shape == (4, 3, 16, 16)
    corner = photo[-16:, -16:].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(whole.crops[3], corner.transpose(2, 0, 1), atol=1e-6)


def test_batches_hold_consecutive_images_of_one_size(
    restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = restorer._pipeline.run

    def recording(images: np.ndarray, *rest: object, **more: object) -> np.ndarray:
        sizes.append(len(images))
        return run(images, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(restorer._pipeline, "run", recording)
    images = [photo] * 5 + [photo[:20]] + [photo[:57]] * 2
    list(restorer.restore_many(images, batch_size=100))
    assert sizes == [3, 2, 1, 2]


@pytest.mark.parametrize("size, reach", [((64, 64), 8), ((70, 90), 8), ((128, 96), 8), ((200, 150), 4)])
def test_zero_padding_leaves_no_frame(
    size: tuple[int, int], reach: int, same: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros from outside reach some pixels into the padded image, but not into the image between its margins."""

    def mean_with_zeros(images: np.ndarray, *_: object, **__: object) -> np.ndarray:
        width = 2 * reach + 1
        for axis in (2, 3):
            padding = [(reach, reach) if each == axis else (0, 0) for each in range(4)]
            images = np.lib.stride_tricks.sliding_window_view(np.pad(images, padding), width, axis).mean(-1)
        return images.astype(np.float32)

    image = np.full((*size, 3), 200, np.uint8)
    monkeypatch.setattr(same._pipeline, "run", mean_with_zeros)
    error = np.abs(same.restore(image, "haze").astype(int) - image)
    if size == (128, 96):  # no room for a margin above and below
        assert error.max() > 10 and not error[reach:-reach].any()
    else:
        assert error.max() <= (2 if max(size) > 128 else 0)  # tiles: a small error remains at their inner borders


@pytest.mark.parametrize("size", [(129, 4), (4, 129), (300, 200), (200, 129), (513, 128)])
def test_tiles_join_without_a_seam(size: tuple[int, int], same: Restorer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for condition in ("auto", "haze"):
        np.testing.assert_array_equal(same.restore(image, condition), image)


def test_large_images_in_a_batch(same: Restorer) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (140, 90, 3), dtype=np.uint8) for i in range(3)]
    for image, found in zip(images, same.restore_many(images, batch_size=2), strict=True):
        np.testing.assert_array_equal(found, image)


def test_tiles_share_the_modulation_of_the_whole_image(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's receptive field is 8 px: tiles differ from the whole image at their borders and in tone only."""
    image = np.random.default_rng(1).integers(0, 256, (112, 96, 3), dtype=np.uint8)
    image[:, :40] //= 4  # tiles would have other crops, so that a modulation of their own would be visible
    with Restorer(toy, "onnxruntime_cpu") as whole, Restorer(toy, "onnxruntime_cpu", tile_size=64) as tiled:
        components: list[str] = []
        run = tiled._backend.run
        monkeypatch.setattr(tiled._backend, "run", lambda name, *rest: (components.append(name), run(name, *rest))[1])
        expected, found = (each.restore(image).astype(int) for each in (whole, tiled))
        assert components.count("mfm") == 1 and components.count("decoder") == 10  # a guide and nine tiles
        assert np.abs(found - expected)[:20, :12].max() <= 3
        assert not np.array_equal(whole.restore(image, "haze"), expected)


@pytest.mark.parametrize("size", [(128, 96), (101, 128), (30, 128), (97, 97), (65, 66)])
def test_the_guide_is_the_image_restored_whole_where_the_bundle_takes_it(
    size: tuple[int, int], toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    seen: list[np.ndarray] = []
    with Restorer(toy, "onnxruntime_cpu") as whole, Restorer(toy, "onnxruntime_cpu", tile_size=64) as tiled:
        for each in (whole, tiled):
            run = each._backend.run
            monkeypatch.setattr(
                each._backend,
                "run",
                lambda name, inputs, *rest, run=run: (
                    seen.append(inputs["image"]) if name == "encoder" else None,
                    run(name, inputs, *rest),
                )[1],
            )
            each.restore(image, "haze")
    one, guide, *tiles = seen
    assert guide.shape == one.shape and {tile.shape[2:] for tile in tiles} <= {(64, 64)}
    np.testing.assert_array_equal(guide, one)


def test_tiles_share_the_decision_of_the_gate(gated: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((160, 160, 3), np.uint8)
    image[:, 80:] = 255  # alone, one half would bypass the model and the other would not
    with Restorer(gated, "onnxruntime_cpu", num_threads=1, tile_size=64) as restorer:
        ran: list[str] = []
        run = restorer._backend.run
        monkeypatch.setattr(restorer._backend, "run", lambda name, *rest: (ran.append(name), run(name, *rest))[1])
        found = restorer.restore(image, details=True)
        assert ran.count("gate") == 1 and ran.count("decoder") > 4
        assert 0.3 < found.bypass_share < 0.7


def test_nan_is_an_error_with_a_remedy(restorer: Restorer, photo: np.ndarray, monkeypatch) -> None:
    monkeypatch.setattr(restorer._pipeline, "run", lambda images, *_, **__: np.full_like(images, np.nan))
    with pytest.raises(ImageError, match="onnxruntime_cpu.*NaN.*fp32"):
        restorer.restore(photo)


def test_an_overflow_of_one_image_leaves_the_others_of_its_batch(
    same: Restorer, photo: np.ndarray, monkeypatch
) -> None:
    def second_overflows(images: np.ndarray, *_: object, **__: object) -> np.ndarray:
        restored = images.copy()
        restored[1:2] = np.inf
        return restored

    monkeypatch.setattr(same._pipeline, "run", second_overflows)
    first, second, third = same.restore_many([photo] * 3, batch_size=3, return_errors=True)
    assert isinstance(second, ImageError) and "infinite" in str(second)
    assert all(np.array_equal(each, photo) for each in (first, third))
    results = same.restore_many([photo] * 3, batch_size=3)
    assert np.array_equal(next(results), photo)
    with pytest.raises(ImageError, match="infinite"):
        next(results)
