"""The backend on the real ONNX Runtime: merged equals dynamic at the prototype, and switching is idempotent."""

from __future__ import annotations

import gc
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from dod_runtime.backends import mapped, sessions
from dod_runtime.backends.base import BackendInfo, BackendOptions
from dod_runtime.backends.onnxruntime import OnnxRuntime, is_installed, machine_reason, unavailable_reason
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BackendError, BundleError, UsageError
from dod_runtime.restorer import Restorer
from tests.runtime.backends.marks import without_gpu
from tests.runtime.toy_bundle import toy_modulation, toy_weights, write_toy_bundle


def opened(bundle: Bundle, precision: str = "auto", num_threads: int | None = 1) -> OnnxRuntime:
    return OnnxRuntime("onnxruntime_cpu", bundle, BackendOptions(precision=precision, num_threads=num_threads))


def image(batch: int = 1, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)


def snr(reference: np.ndarray, found: np.ndarray) -> float:
    noise = float(((reference - found) ** 2).sum())
    return math.inf if noise == 0 else 10 * math.log10(float((reference**2).sum()) / noise)


def test_the_toy_passes_onnx_full_check(toy: Bundle) -> None:
    for precision in toy.manifest.precisions.values():
        for path in precision.onnx.values():
            onnx.checker.check_model(str(toy.path(path)), full_check=True)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 100), ("fp16", 60)])
@pytest.mark.parametrize("condition", ["haze", "noise"])
def test_merged_equals_dynamic_at_the_prototype(precision: str, least: float, condition: str, toy: Bundle) -> None:
    backend = opened(toy, precision)
    latent = backend.run("encoder", {"image": image()})["latent"]
    modulation = toy.modulation(condition)[None]
    dynamic = backend.run("unet_dynamic", {"latent": latent, "modulation": modulation})["latent_restored"] - latent
    merged = backend.run("unet_merged", {"latent": latent}, condition)["latent_restored"] - latent
    assert snr(dynamic, merged) >= least
    other = backend.run("unet_merged", {"latent": latent}, "noise" if condition == "haze" else "haze")
    assert snr(dynamic, other["latent_restored"] - latent) < 20


def test_every_image_of_a_batch_has_its_own_modulation(toy: Bundle) -> None:
    backend = opened(toy, "fp32")
    latent = backend.run("encoder", {"image": image(batch=2)})["latent"]
    both = np.stack([toy.modulation("haze"), toy.modulation("noise")])
    together = backend.run("unet_dynamic", {"latent": latent, "modulation": both})["latent_restored"]
    for i in range(2):
        alone = backend.run("unet_dynamic", {"latent": latent[i : i + 1], "modulation": both[i : i + 1]})
        np.testing.assert_allclose(together[i : i + 1], alone["latent_restored"], atol=1e-5)


def test_mfm_computes_the_modulation(toy: Bundle) -> None:
    crops = np.random.default_rng(1).uniform(-1, 1, (2, 4, 3, 16, 16)).astype(np.float32)
    found = opened(toy).run("mfm", {"crops": crops})
    np.testing.assert_allclose(found["condition"], crops.mean(axis=(1, 3, 4)), atol=1e-5)
    expected = toy_modulation(found["condition"], toy_weights(1)["mfm"])
    np.testing.assert_allclose(found["modulation"], expected, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 8])
def test_switching_back_gives_the_same_bits(kept: int, toy: Bundle) -> None:
    backend = opened(toy, "fp32")
    backend._kept["unet_merged"] = kept
    latent = backend.run("encoder", {"image": image()})["latent"]
    first, other, again = (
        backend.run("unet_merged", {"latent": latent}, condition)["latent_restored"]
        for condition in ("haze", "noise", "haze")
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(backend._sessions["unet_merged"]) == min(kept, 2)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 120), ("fp16", 100)])
def test_a_large_model_gives_the_same_results_and_leaves_no_maps(
    precision: str, least: float, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = opened(toy).run("encoder", {"image": image()})["latent"]
    modulation = toy.modulation("noise")[None]
    calls = [("unet_merged", {"latent": latent}, "haze"), ("unet_merged", {"latent": latent}, "noise")]
    calls += [("unet_dynamic", {"latent": latent, "modulation": modulation}, None)]
    expected = [opened(toy, precision).run(*call)["latent_restored"] for call in calls]
    gc.collect()
    before = len(mapped._own)
    monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    saving = opened(toy, precision)
    with ThreadPoolExecutor(4) as pool:
        first, second = (list(pool.map(lambda call: saving.run(*call)["latent_restored"], calls)) for _ in range(2))
    for one, again, as_small in zip(first, second, expected, strict=True):
        assert snr(as_small, one) >= least  # sums in another order
        np.testing.assert_array_equal(one, again)  # reads released pages again
    assert len(mapped._own) > before
    saving.close()
    gc.collect()
    assert len(mapped._own) == before and not saving._lent


def test_merged_values_must_be_in_the_graph(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    monkeypatch.setattr(toy, "merged", lambda *_: {"conv.lora_A.weight": np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match=r"unet_merged.*'conv\.lora_A\.weight'"):
        opened(toy).run("unet_merged", {}, "haze")


def test_a_full_disk_is_an_error_of_the_backend_and_not_of_the_bundle(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    monkeypatch.setattr("dod_runtime.backends.mapped.os.posix_fallocate", full)
    with pytest.raises(BackendError, match="No space left on device.*TMPDIR"):
        opened(toy).run("unet_merged", {}, "haze")


def test_threads_agree_with_one_after_the_other(toy: Bundle) -> None:
    serial, shared = opened(toy), opened(toy)
    images = [image(height=16 * (2 + i % 3)) for i in range(12)]
    conditions = ["haze", "noise"] * 6

    def run(backend: OnnxRuntime, image: np.ndarray, condition: str) -> np.ndarray:
        latent = backend.run("encoder", {"image": image})["latent"]
        return backend.run("unet_merged", {"latent": latent}, condition)["latent_restored"]

    expected = [run(serial, *pair) for pair in zip(images, conditions, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: run(shared, *pair), zip(images, conditions, strict=True)))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sessions_are_opened_at_their_first_use(toy: Bundle) -> None:
    backend = opened(toy)
    assert not backend._sessions
    backend.run("encoder", {"image": image()})
    assert list(backend._sessions) == ["encoder"]
    backend.close()
    backend.close()
    assert not backend._sessions


def test_precision(toy: Bundle, identity: Bundle) -> None:
    assert opened(toy).info.precision == "fp32"
    assert opened(toy, "fp16").info.precision == "fp16"
    assert opened(toy, "fp16").run("encoder", {"image": image()})["skip_0"].dtype == np.float16
    with pytest.raises(BackendError, match="fp32.*not fp16"):
        opened(identity, "fp16")


def test_fp16_is_the_default_of_a_bundle_without_fp32(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy_bundle(tmp_path / "fp16", precisions=["fp16"]))
    assert opened(bundle).info.precision == "fp16"


def test_info(toy: Bundle) -> None:
    import onnxruntime

    expected = BackendInfo("onnxruntime_cpu", onnxruntime.__version__, "CPU, 2 threads", "fp32")
    assert opened(toy, num_threads=2).info == expected


def test_reasons(toy: Bundle) -> None:
    assert unavailable_reason("onnxruntime_cpu", toy, BackendOptions()) is None
    assert machine_reason("onnxruntime_cpu", BackendOptions()) is None
    assert is_installed("onnxruntime_cpu")
    without = Bundle(toy.folder, replace(toy.manifest, targets={}))
    reason = unavailable_reason("onnxruntime_cpu", without, BackendOptions())
    assert reason and "onnxruntime" in reason


@without_gpu
def test_cuda_needs_its_provider_and_a_gpu(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    reason = unavailable_reason("onnxruntime_cuda", toy, BackendOptions())
    assert reason and "pip install onnxruntime-gpu" in reason and not is_installed("onnxruntime_cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    reason = unavailable_reason("onnxruntime_cuda", toy, BackendOptions())
    assert reason and "NVIDIA" in reason and is_installed("onnxruntime_cuda")


def test_failures_are_one_line(toy: Bundle) -> None:
    backend = opened(toy)
    with pytest.raises(BackendError, match="encoder: ") as caught:
        backend.run("encoder", {"image": np.zeros((1, 4, 32, 32), np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="'rain'"):
        backend.run("unet_merged", {}, "rain")


def test_changed_weights_are_not_loaded(copy: Path) -> None:
    path = copy / "onnx/fp32/decoder.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"decoder\.safetensors was changed"):
        opened(Bundle.open(copy)).run("decoder", {})


def test_merge_entries_must_name_external_initializers(copy: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    data["merge"][0]["weight"] = "out.lora"
    (copy / "bundle.json").write_text(json.dumps(data))
    backend = opened(Bundle.open(copy))
    with pytest.raises(BundleError, match=r"conv.*'out\.lora'"):
        backend.run("unet_merged", {}, "haze")


def test_a_file_that_is_no_graph(tmp_path: Path, copy: Path) -> None:
    from dod_runtime.bundle.write import write_bundle

    data = json.loads((copy / "bundle.json").read_text())
    (copy / "onnx/fp32/encoder.onnx").write_bytes(b"no graph")
    bundle = write_bundle(data, copy, tmp_path / "spoiled")
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        opened(bundle).run("encoder", {"image": image()})


def test_a_closed_backend_frees_its_memory(toy: Bundle) -> None:
    backend, process = opened(toy, "fp32"), psutil.Process()
    pixels = image(1, 2048, 2048)
    before = process.memory_info().rss
    for condition in ("haze", "noise"):
        backend.run("unet_merged", {"latent": backend.run("encoder", {"image": pixels})["latent"]}, condition)
    held = process.memory_info().rss - before
    backend.close()
    assert process.memory_info().rss - before < held / 2
    assert backend.run("encoder", {"image": image()}), "a closed backend can be used again"


def test_a_dropped_restorer_frees_its_memory(toy: Bundle) -> None:
    process, pixels = psutil.Process(), image(1, 2048, 2048)
    before = process.memory_info().rss
    restorer = Restorer(toy, backend="onnxruntime_cpu")
    restorer.run_components(pixels, condition="haze")
    held = process.memory_info().rss - before
    del restorer
    assert process.memory_info().rss - before < held / 2


def test_the_arena_is_released_after_each_image_of_a_large_model(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()
    held = {}
    for large in (True, False):
        monkeypatch.setattr(sessions, "LARGE", 0 if large else 1 << 60)
        backend, pixels = opened(toy, "fp32"), image(1, 2048, 2048)
        names = [spec.name for spec in toy.manifest.components["decoder"].inputs]
        before = process.memory_info().rss
        found = backend.run("encoder", {"image": pixels})
        found["latent_restored"] = found.pop("latent")
        found = {name: found[name].copy() for name in names}  # results in the arena would keep it alive
        backend.run("decoder", found)
        del found
        held[large] = process.memory_info().rss - before
        backend.close()
    assert held[True] < held[False] / 2, held


def test_the_arena_does_not_grow_with_the_number_of_image_sizes(toy: Bundle) -> None:
    """Blocks for one size fit no larger one: they are released after the next image."""
    process, grown = psutil.Process(), {}
    names = [spec.name for spec in toy.manifest.components["decoder"].inputs]
    for releases in (True, False):
        backend = opened(toy, "fp32")
        held = [process.memory_info().rss]
        for side in (1600, 1792, 1984, 2048, 2112):
            if not releases:
                backend._shape = ()  # as before the first image: nothing is released
            found = backend.run("encoder", {"image": image(1, side, side)})
            found["latent_restored"] = found.pop("latent")
            backend.run("decoder", {name: found[name] for name in names})
            del found
            held.append(process.memory_info().rss)
        backend.close()
        grown[releases] = held[-1] - held[1]
    assert grown[True] < grown[False] / 2, {key: value >> 20 for key, value in grown.items()}
