"""The public class, on the real ONNX Runtime and OpenVINO."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod_runtime import BackendInfo, Bundle, BundleError, ImageError, Restoration, Restorer, UsageError


@pytest.fixture(scope="module")
def restorer(toy: Bundle) -> Iterator[Restorer]:
    with Restorer(toy, backend="onnxruntime_cpu", num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def same(identity: Bundle) -> Iterator[Restorer]:
    with Restorer(identity, backend="onnxruntime_cpu", num_threads=1) as opened:
        yield opened


def test_files_and_pillow_images_become_pillow_images(same: Restorer, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo)):
        result = same.restore(source)
        assert isinstance(result, Image.Image)
        np.testing.assert_array_equal(np.asarray(result), photo)
    deep = (photo[..., 0].astype(np.uint16) << 8) + 77
    found = np.asarray(same.restore(Image.fromarray(deep)))
    assert found.dtype == np.uint16 and np.abs(found.astype(int) - deep).max() <= 1


def test_arrays_become_arrays_of_the_same_dtype_and_layout(same: Restorer, photo: np.ndarray) -> None:
    alpha = np.dstack([photo, np.arange(60 * 90, dtype=np.uint8).reshape(60, 90)])
    np.testing.assert_array_equal(same.restore(alpha), alpha)
    for dtype in (np.float32, np.float64):
        floats = photo.astype(dtype) / 255
        result = same.restore(floats)
        assert isinstance(result, np.ndarray) and result.dtype == dtype and result.shape == floats.shape
        np.testing.assert_allclose(result, floats, atol=1e-6)


def test_a_call_restores(restorer: Restorer, photo: np.ndarray) -> None:
    np.testing.assert_array_equal(restorer(photo, "haze"), restorer.restore(photo, "haze"))
    result = restorer(photo, "haze", details=True)
    assert isinstance(result, Restoration) and result.bypass_share == 0


@pytest.mark.parametrize("backend", ["onnxruntime_cpu", "openvino"])
@pytest.mark.parametrize("condition", ["auto", "haze"])
@pytest.mark.parametrize(("size", "batch_size"), [((60, 90), 1), ((60, 90), 2), ((200, 300), 1)])
def test_after_warmup_the_first_image_opens_no_session(
    backend: str, condition: str, size: tuple[int, int], batch_size: int, ov_toy: Bundle, monkeypatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with Restorer(ov_toy, backend=backend, num_threads=1) as restorer:
        restorer.warmup(condition, size, batch_size)
        monkeypatch.setattr(type(restorer._backend), "_open", None)
        images = list(restorer.restore_many([image] * batch_size, condition, batch_size))
    assert [each.shape for each in images] == [image.shape] * batch_size


def test_warmup_verifies_the_bundle(copy: Path) -> None:
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


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_restore_many_is_restore_one_by_one_and_in_order(
    batch_size: int, restorer: Restorer, photo: np.ndarray
) -> None:
    images = [photo, photo[:50], photo[:, :60], photo[:30], photo[:60], photo[::-1], photo[:, ::-1]]
    found = list(restorer.restore_many(iter(images), "haze", batch_size))
    assert len(found) == len(images)
    for image, result in zip(images, found, strict=True):
        assert np.abs(result.astype(int) - restorer.restore(image, "haze").astype(int)).max() <= 1


def test_restore_many_is_lazy(restorer: Restorer, photo: np.ndarray) -> None:
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
    with pytest.raises(ImageError, match="none.png"):
        next(generator)


def test_wrong_arguments_name_the_value_and_the_valid_ones(restorer: Restorer, toy: Bundle, photo: np.ndarray) -> None:
    with pytest.raises(UsageError, match="'Noise'.*'noise'.*auto, haze, noise"):
        restorer.restore(photo, "Noise")
    with pytest.raises(UsageError, match="'rain'"):
        restorer.restore_many([photo], "rain")
    with pytest.raises(UsageError, match="batch_size.* 0"):
        restorer.restore_many([photo], batch_size=0)
    with pytest.raises(UsageError, match=r"1 and \(0, 32\)"):
        restorer.warmup(size=(0, 32))
    with pytest.raises(UsageError, match="num_threads.* 0"):
        Restorer(toy, num_threads=0)
    with pytest.raises(UsageError, match="72.* 16 .*32 .*128 .*64"):
        Restorer(toy, tile_size=72)
    with pytest.raises(BundleError, match="none"):
        Restorer("none")
    with pytest.raises(UsageError, match="auto.*crops"):
        restorer.run_components(restorer.prepare(photo).image[None])


def test_info(restorer: Restorer) -> None:
    import onnxruntime

    info = restorer.info
    assert isinstance(info, BackendInfo) and (info.name, info.precision) == ("onnxruntime_cpu", "fp32")
    assert info.version == onnxruntime.__version__ and info.device == "CPU, 1 thread"
    assert info.reason == "requested" and info.skipped == {}
    assert (restorer.backend, restorer.precision, restorer.description) == (info.name, info.precision, str(info))
    assert "onnxruntime_cpu" in repr(restorer) and "fp32" in repr(restorer)


def test_the_choice_is_logged_and_nothing_is_printed(toy: Bundle, photo: np.ndarray, capsys) -> None:
    records: list[logging.LogRecord] = []
    handler, log = logging.Handler(), logging.getLogger("dod_runtime")
    handler.emit = records.append
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        Restorer(toy, backend="onnxruntime_cpu").restore(photo, "haze")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    (record,) = records
    assert record.levelno == logging.INFO and "onnxruntime_cpu" in record.getMessage()
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_fp16_is_close_to_fp32(toy: Bundle, restorer: Restorer, photo: np.ndarray) -> None:
    with Restorer(toy, backend="onnxruntime", precision="fp16") as fp16:
        difference = fp16.restore(photo, "haze").astype(int) - restorer.restore(photo, "haze").astype(int)
    assert np.abs(difference).max() <= 2


def test_threads_with_other_conditions_give_the_results_of_one_thread(restorer: Restorer, photo: np.ndarray) -> None:
    jobs = [(photo[: 20 + 3 * i], condition) for i, condition in enumerate(["haze", "noise", "auto"] * 4)]
    expected = [restorer.restore(*job) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        for one, other in zip(expected, pool.map(lambda job: restorer.restore(*job), jobs), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_thread_restores_after_the_main_thread_has_ended(toy: Bundle) -> None:
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
