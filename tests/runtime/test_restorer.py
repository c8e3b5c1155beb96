"""The public class, on the real ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dod_runtime import Bundle, BundleError, ImageError, Restorer, UsageError
from dod_runtime.pipeline import path_of
from tests.runtime.toy_bundle import OPENVINO, write_toy_bundle


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


def test_kinds_of_images(same: Restorer, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo)):
        result = same.restore(source)
        assert isinstance(result, Image.Image)
        np.testing.assert_array_equal(np.asarray(result), photo)
    deep = (photo[..., 0].astype(np.uint16) << 8) + 77
    found = np.asarray(same.restore(Image.fromarray(deep)))
    assert found.dtype == np.uint16 and np.abs(found.astype(int) - deep).max() <= 1
    alpha = np.dstack([photo, np.arange(60 * 90, dtype=np.uint8).reshape(60, 90)])
    np.testing.assert_array_equal(same.restore(alpha), alpha)
    floats = photo.astype(np.float64) / 255
    result = same.restore(floats)
    assert isinstance(result, np.ndarray) and result.dtype == np.float64
    np.testing.assert_allclose(result, floats, atol=1e-6)


@pytest.mark.parametrize("backend", ["onnxruntime_cpu", "openvino"])
@pytest.mark.parametrize("condition", ["auto", "haze"])
@pytest.mark.parametrize(("size", "batch_size"), [((60, 90), 1), ((60, 90), 2), ((200, 300), 1)])
def test_a_warm_path_opens_nothing_for_its_first_image(
    backend: str, condition: str, size: tuple[int, int], batch_size: int, ov_toy: Bundle, monkeypatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with Restorer(ov_toy, backend=backend, num_threads=1) as restorer:
        restorer.warmup(condition, size, batch_size)
        monkeypatch.setattr(type(restorer._backend), "_open", None)
        images = list(restorer.restore_many([image] * batch_size, condition, batch_size))
    assert [each.shape for each in images] == [image.shape] * batch_size


def test_a_path_of_a_bundle_that_was_changed_is_not_opened(copy: Path) -> None:
    with Restorer(copy, backend="onnxruntime_cpu", num_threads=1) as restorer:
        weights = copy / "onnx" / "fp32" / "decoder.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(BundleError, match="decoder.safetensors was changed"):
            restorer.warmup("haze")


def test_conditions_differ_and_switching_is_idempotent(restorer: Restorer, photo: np.ndarray) -> None:
    assert restorer.conditions == ("auto", "haze", "noise")
    results = [restorer.restore(photo, condition) for condition in ("haze", "noise", "haze", "auto", "haze")]
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[0], results[4])
    assert not np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[3])


def test_the_mfm_runs_for_auto_alone(restorer: Restorer, photo: np.ndarray) -> None:
    for condition, expected in (
        ("auto", ["mfm", "encoder", "unet_dynamic", "decoder"]),
        ("haze", ["encoder", "unet_merged", "decoder"]),
    ):
        seen: list[tuple[str, float]] = []
        prepared = restorer.prepare(photo, condition)
        crops = None if prepared.crops is None else prepared.crops[None]
        observed = restorer.run_components(
            prepared.image[None], crops, condition, observe=lambda *pair, seen=seen: seen.append(pair)
        )
        assert [name for name, _ in seen] == expected and all(seconds >= 0 for _, seconds in seen)
        np.testing.assert_array_equal(observed, restorer.run_components(prepared.image[None], crops, condition))
        assert (prepared.crops is None) is (condition != "auto")
        assert prepared.image.shape == (3, 96, 128) and observed.dtype == np.float32
    with pytest.raises(UsageError, match="auto needs crops"):
        restorer.run_components(prepared.image[None])


def test_padding_does_not_reach_the_mfm(restorer: Restorer, photo: np.ndarray) -> None:
    whole = restorer.prepare(photo)
    assert whole.crops is not None and whole.crops.shape == (4, 3, 16, 16)
    corner = photo[-16:, -16:].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(whole.crops[3], corner.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_many_are_one_by_one_and_in_order(batch_size: int, restorer: Restorer, photo: np.ndarray) -> None:
    images = [photo, photo[:50], photo[:, :60], photo[:30], photo[:60], photo[::-1], photo[:, ::-1]]
    found = list(restorer.restore_many(iter(images), "haze", batch_size))
    assert len(found) == len(images)
    for image, result in zip(images, found, strict=True):
        assert np.abs(result.astype(int) - restorer.restore(image, "haze").astype(int)).max() <= 1


def test_batches_hold_neighbours_of_one_size(
    restorer: Restorer, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = restorer.run_components

    def recording(images: np.ndarray, *rest: object, **more: object) -> np.ndarray:
        sizes.append(len(images))
        return run(images, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(restorer, "run_components", recording)
    pixels_given = [photo] * 5 + [photo[:20]] + [photo[:57]] * 2
    list(restorer.restore_many(pixels_given, batch_size=100))
    assert sizes == [3, 2, 1, 2]


def test_many_is_lazy(restorer: Restorer, photo: np.ndarray) -> None:
    taken: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for i in range(100):
            taken.append(i)
            yield photo

    next(restorer.restore_many(source()))
    assert len(taken) <= 2


def test_a_bad_image_among_many(restorer: Restorer, photo: np.ndarray, tmp_path: Path) -> None:
    images = [photo, tmp_path / "none.png", photo, np.zeros((200, 4), np.int8), photo]
    found = list(restorer.restore_many(images, "noise", 3, return_errors=True))
    assert [type(each).__name__ for each in found] == ["ndarray", "ImageError", "ndarray", "ImageError", "ndarray"]
    generator = restorer.restore_many(images, "noise", 3)
    next(generator)
    with pytest.raises(ImageError, match="no such file"):
        next(generator)


def test_usage(restorer: Restorer, toy: Bundle, photo: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"unknown condition 'Noise' \(did you mean 'noise'\?\): .* auto, haze, noise"):
        restorer.restore(photo, "Noise")
    with pytest.raises(UsageError, match="unknown condition"):
        restorer.restore_many([photo], "rain")
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        restorer.restore_many([photo], batch_size=0)
    with pytest.raises(UsageError, match=r"at least 1, not 1 and \(0, 32\)"):
        restorer.warmup(size=(0, 32))
    with pytest.raises(UsageError, match="threads must be at least 1"):
        Restorer(toy, num_threads=0)
    with pytest.raises(UsageError, match="tile 72: .* multiples of 16 from 32 to 128 pixels; the nearest is 64"):
        Restorer(toy, tile_size=72)
    with pytest.raises(BundleError, match="no such bundle"):
        Restorer("none")


@pytest.mark.parametrize("size, reach", [((64, 64), 8), ((70, 90), 8), ((128, 96), 8), ((200, 150), 4)])
def test_zero_padding_leaves_no_frame(
    size: tuple[int, int], reach: int, same: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros beyond the border reach some pixels into what is run, and none of the image where it has its margins."""

    def mean_with_zeros(images: np.ndarray, *_: object, **__: object) -> np.ndarray:
        width = 2 * reach + 1
        for axis in (2, 3):
            padding = [(reach, reach) if each == axis else (0, 0) for each in range(4)]
            images = np.lib.stride_tricks.sliding_window_view(np.pad(images, padding), width, axis).mean(-1)
        return images.astype(np.float32)

    image = np.full((*size, 3), 200, np.uint8)
    monkeypatch.setattr(same, "run_components", mean_with_zeros)
    restored = same.restore(image, "haze")
    assert isinstance(restored, np.ndarray)
    error = np.abs(restored.astype(int) - image)
    if size == (128, 96):  # no room for a margin above and below
        assert error.max() > 10 and not error[reach:-reach].any()
    else:
        assert error.max() <= (2 if max(size) > 128 else 0)  # tiles: what is left at their inner borders


@pytest.mark.parametrize("size", [(129, 4), (4, 129), (300, 200), (200, 129), (513, 128)])
def test_tiles_join_without_a_seam(size: tuple[int, int], same: Restorer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for condition in ("auto", "haze"):
        np.testing.assert_array_equal(same.restore(image, condition), image)


def test_tiles_share_the_modulation_of_the_whole_image(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy sees 8 pixels around a place: tiles differ from the whole where they end, and by the guide's tone."""
    image = np.random.default_rng(1).integers(0, 256, (112, 96, 3), dtype=np.uint8)
    image[:, :40] //= 4  # other crops in other tiles, so that a modulation of their own would show
    with Restorer(toy, "onnxruntime_cpu") as whole, Restorer(toy, "onnxruntime_cpu", tile_size=64) as tiled:
        components: list[str] = []
        run = tiled._backend.run
        monkeypatch.setattr(tiled._backend, "run", lambda name, *rest: (components.append(name), run(name, *rest))[1])
        expected, found = (each.restore(image).astype(int) for each in (whole, tiled))
        assert components.count("mfm") == 1 and components.count("decoder") == 10  # a guide and nine tiles
        assert np.abs(found - expected)[:20, :12].max() <= 3
        assert not np.array_equal(whole.restore(image, "haze"), expected)


@pytest.mark.parametrize("size", [(128, 96), (101, 128), (30, 128), (97, 97), (65, 66)])
def test_the_guide_of_tiles_is_the_image_restored_whole_where_the_bundle_takes_it(
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


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy with a gate that lets bright images pass, and a condition `noise` on which all of them do."""
    folder = tmp_path_factory.mktemp("gated") / "toy"
    return Bundle.open(write_toy_bundle(folder, effect=8, targets=OPENVINO, shares={"noise": 1.0}))


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same without the gate."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("ungated") / "toy", effect=8))


@pytest.mark.parametrize("backend", ["onnxruntime_cpu", "openvino"])
def test_the_gate_decides_on_auto_and_never_on_a_named_path(
    backend: str, gated: Bundle, ungated: Bundle, photo
) -> None:
    dark, bright = 40 + photo // 8, 200 - photo // 8
    with (
        Restorer(gated, backend, num_threads=1) as restorer,
        Restorer(ungated, "onnxruntime_cpu", num_threads=1) as plain,
    ):
        for image, least, most in ((dark, 0.0, 0.1), (bright, 0.9, 1.0)):
            assert least <= restorer.restore(image, details=True).bypass_share <= most
            prepared = restorer.prepare(image)
            given = prepared.image[None], prepared.crops[None]  # type: ignore[index]
            decisions = restorer.decide(1, given[1], "auto")
            share, added = decisions["share"].item(), decisions["gains"].sum()
            expected = (1 - share) * plain.run_components(*given) + share * (given[0] + added)
            np.testing.assert_allclose(restorer.run_components(*given), expected, atol=1e-3)
        for image in (dark, bright):
            named = restorer.restore(image, "haze", details=True)
            assert named.bypass_share == 0
            np.testing.assert_array_equal(named.image, plain.restore(image, "haze"))
        passed = restorer.restore(dark, "noise", details=True)
        assert passed.bypass_share == 1
        change = np.asarray(passed.image).astype(int) - dark
        assert change.max() - change.min() <= 1 and change.any(), "only the kernel's constant was added"


def test_the_bypass_can_be_switched_off(gated: Bundle, ungated: Bundle, photo: np.ndarray) -> None:
    bright = 255 - photo // 8
    with (
        Restorer(gated, "onnxruntime_cpu", num_threads=1, bypass=False) as restorer,
        Restorer(ungated, "onnxruntime_cpu", num_threads=1) as plain,
    ):
        for condition in ("auto", "haze", "noise"):
            found = restorer.restore(bright, condition, details=True)
            assert found.bypass_share == 0
            np.testing.assert_array_equal(found.image, plain.restore(bright, condition))


def test_tiles_share_what_the_gate_decided_of_the_whole_image(gated: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((160, 160, 3), np.uint8)
    image[:, 80:] = 255  # by itself one half would pass the model and the other would not
    with Restorer(gated, "onnxruntime_cpu", num_threads=1, tile_size=64) as restorer:
        ran: list[str] = []
        run = restorer._backend.run
        monkeypatch.setattr(restorer._backend, "run", lambda name, *rest: (ran.append(name), run(name, *rest))[1])
        found = restorer.restore(image, details=True)
        assert ran.count("gate") == 1 and ran.count("decoder") > 4
        assert 0.3 < found.bypass_share < 0.7


def test_paths_with_a_gate_run_it_where_it_decides(gated: Bundle, photo: np.ndarray) -> None:
    assert path_of(gated, "auto") == ("mfm", "gate", "encoder", "unet_dynamic", "decoder")
    assert path_of(gated, "auto", bypass=False) == ("mfm", "encoder", "unet_dynamic", "decoder")
    assert path_of(gated, "haze") == ("encoder", "unet_merged", "decoder")
    assert path_of(gated, "noise") == ("gate", "encoder", "unet_merged", "decoder")
    with Restorer(gated, "onnxruntime_cpu", num_threads=1) as restorer:
        assert restorer.prepare(photo, "haze").crops is None and restorer.prepare(photo, "noise").crops is not None
        found = list(restorer.restore_many([photo, 255 - photo // 8], batch_size=2, details=True))
        assert found[0].bypass_share < found[1].bypass_share
        alone = restorer.restore(photo, details=True)
        assert alone.bypass_share == pytest.approx(found[0].bypass_share, abs=1e-5)


def test_large_images_in_a_batch(same: Restorer) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (140, 90, 3), dtype=np.uint8) for i in range(3)]
    for image, found in zip(images, same.restore_many(images, batch_size=2), strict=True):
        np.testing.assert_array_equal(found, image)


def test_values_that_are_no_numbers_are_an_error(restorer: Restorer, photo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer, "run_components", lambda images, *_, **__: np.full_like(images, np.nan))
    with pytest.raises(ImageError, match=r"gave values that are no numbers.*try precision fp32"):
        restorer.restore(photo)


def test_an_overflow_of_one_image_leaves_the_others_of_its_batch(same: Restorer, photo, monkeypatch) -> None:
    def second_overflows(images: np.ndarray, *_: object, **__: object) -> np.ndarray:
        restored = images.copy()
        restored[1:2] = np.inf
        return restored

    monkeypatch.setattr(same, "run_components", second_overflows)
    first, second, third = same.restore_many([photo] * 3, batch_size=3, return_errors=True)
    assert isinstance(second, ImageError) and "no numbers" in str(second)
    assert all(np.array_equal(each, photo) for each in (first, third))
    given = same.restore_many([photo] * 3, batch_size=3)
    assert np.array_equal(next(given), photo)
    with pytest.raises(ImageError, match="no numbers"):
        next(given)


def test_what_it_says_of_itself(restorer: Restorer) -> None:
    assert restorer.backend == "onnxruntime_cpu" and restorer.precision == "fp32" and restorer.reason == "asked for"
    assert "on the CPU, 1 threads, fp32" in restorer.description and "onnxruntime_cpu" in repr(restorer)


def test_half_is_close_to_single(toy: Bundle, restorer: Restorer, photo: np.ndarray) -> None:
    with Restorer(toy, backend="onnxruntime", precision="fp16") as fp16:
        difference = fp16.restore(photo, "haze").astype(int) - restorer.restore(photo, "haze").astype(int)
    assert np.abs(difference).max() <= 2


def test_threads_with_other_conditions_give_what_one_thread_gives(restorer: Restorer, photo: np.ndarray) -> None:
    jobs = [(photo[: 20 + 3 * i], condition) for i, condition in enumerate(["haze", "noise", "auto"] * 4)]
    expected = [restorer.restore(*job) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        for one, other in zip(expected, pool.map(lambda job: restorer.restore(*job), jobs), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_thread_goes_on_restoring_when_the_main_one_has_ended(toy: Bundle) -> None:
    code = f"""
import threading
import numpy as np
from dod_runtime import Restorer

def restore():
    threading.main_thread().join()
    with Restorer({str(toy.folder)!r}, "onnxruntime_cpu") as restorer:
        print(restorer.restore(np.zeros((32, 32, 3), np.uint8), "haze").shape)

threading.Thread(target=restore).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "(32, 32, 3)\n", done.stderr
