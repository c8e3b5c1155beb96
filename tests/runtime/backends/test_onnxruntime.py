"""The backend on the real ONNX Runtime: merged is dynamic at the prototype, switching is idempotent, threads agree."""

from __future__ import annotations

import gc
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from dod_runtime.backends import mapped, sessions
from dod_runtime.backends.base import Options, kept_sessions
from dod_runtime.backends.onnxruntime import OnnxRuntime
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BackendError, BundleError, UsageError
from dod_runtime.restorer import Restorer
from tests.runtime.toy_bundle import toy_modulation, toy_weights, write_toy_bundle


def opened(bundle: Bundle, precision: str = "auto", threads: int | None = 1) -> OnnxRuntime:
    return OnnxRuntime("onnxruntime_cpu", bundle, Options(precision=precision, num_threads=threads))


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
def test_merged_is_dynamic_at_the_prototype(precision: str, least: float, condition: str, toy: Bundle) -> None:
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
def test_a_model_of_gigabytes_gives_the_same_and_leaves_no_maps(
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
    sparing = opened(toy, precision)
    with ThreadPoolExecutor(4) as pool:
        first, second = (list(pool.map(lambda call: sparing.run(*call)["latent_restored"], calls)) for _ in range(2))
    for one, again, as_small in zip(first, second, expected, strict=True):
        assert snr(as_small, one) >= least  # sums in another order
        np.testing.assert_array_equal(one, again)  # which reads what was given back
    assert len(mapped._own) > before
    sparing.close()
    gc.collect()
    assert len(mapped._own) == before and not sparing._lent


def test_what_is_lent_must_be_in_the_graph(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    monkeypatch.setattr(toy, "merged", lambda *_: {"conv.lora_A.weight": np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match=r"the graph unet_merged holds no initializer 'conv\.lora_A\.weight'"):
        opened(toy).run("unet_merged", {}, "haze")


def test_no_room_for_merged_weights_is_not_blamed_on_the_bundle(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    monkeypatch.setattr("dod_runtime.backends.mapped.os.posix_fallocate", full)
    with pytest.raises(BackendError, match=r"No space left on device; set TMPDIR"):
        opened(toy).run("unet_merged", {}, "haze")


def test_sessions_kept() -> None:
    assert kept_sessions(1) == 8 and kept_sessions(1 << 30) == 4 and kept_sessions(1 << 40) == 1


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


def test_sessions_are_made_when_needed(toy: Bundle) -> None:
    backend = opened(toy)
    assert not backend._sessions
    backend.run("encoder", {"image": image()})
    assert list(backend._sessions) == ["encoder"]
    backend.close()
    backend.close()
    assert not backend._sessions


def test_precision(toy: Bundle, identity: Bundle) -> None:
    assert opened(toy).precision == "fp32"
    assert opened(toy, "fp16").precision == "fp16"
    assert opened(toy, "fp16").run("encoder", {"image": image()})["skip_0"].dtype == np.float16
    with pytest.raises(BackendError, match="this bundle has fp32 for it, not fp16"):
        opened(identity, "fp16")


def test_only_half_is_run_where_there_is_only_half(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy_bundle(tmp_path / "half", precisions=["fp16"]))
    assert opened(bundle).precision == "fp16"


def test_description_names_version_place_and_precision(toy: Bundle) -> None:
    import onnxruntime

    assert (
        opened(toy, num_threads=2).description == f"ONNX Runtime {onnxruntime.__version__} on the CPU, 2 threads, fp32"
    )


def test_failures_are_one_line(toy: Bundle) -> None:
    backend = opened(toy)
    with pytest.raises(BackendError, match="ONNX Runtime failed in encoder: ") as caught:
        backend.run("encoder", {"image": np.zeros((1, 4, 32, 32), np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown condition 'rain'"):
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
    with pytest.raises(BundleError, match=r"cannot merge conv: the weights hold no tensor 'out\.lora'"):
        backend.run("unet_merged", {}, "haze")


def test_graph_that_is_none(tmp_path: Path, copy: Path) -> None:
    from dod_runtime.bundle.write import write_bundle

    data = json.loads((copy / "bundle.json").read_text())
    (copy / "onnx/fp32/encoder.onnx").write_bytes(b"no graph")
    bundle = write_bundle(data, copy, tmp_path / "spoiled")
    with pytest.raises(BundleError, match=r"cannot load .*encoder\.onnx"):
        opened(bundle).run("encoder", {"image": image()})


def test_a_closed_backend_leaves_no_memory_behind(toy: Bundle) -> None:
    backend, process = opened(toy, "fp32"), psutil.Process()
    pixels = image(1, 2048, 2048)
    before = process.memory_info().rss
    for condition in ("haze", "noise"):
        backend.run("unet_merged", {"latent": backend.run("encoder", {"image": pixels})["latent"]}, condition)
    held = process.memory_info().rss - before
    backend.close()
    assert process.memory_info().rss - before < held / 2
    assert backend.run("encoder", {"image": image()}), "a closed backend opens anew"


def test_a_restorer_that_is_dropped_leaves_no_memory_behind(toy: Bundle) -> None:
    process, pixels = psutil.Process(), image(1, 2048, 2048)
    before = process.memory_info().rss
    restorer = Restorer(toy, backend="onnxruntime_cpu")
    restorer.run_components(pixels, condition="haze")
    held = process.memory_info().rss - before
    del restorer
    assert process.memory_info().rss - before < held / 2


def test_the_arena_goes_back_after_each_image_of_a_large_model(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()
    held = {}
    for large in (True, False):
        monkeypatch.setattr(sessions, "LARGE", 0 if large else 1 << 60)
        backend, pixels = opened(toy, "fp32"), image(1, 2048, 2048)
        names = [spec.name for spec in toy.manifest.components["decoder"].inputs]
        before = process.memory_info().rss
        found = backend.run("encoder", {"image": pixels})
        found["latent_restored"] = found.pop("latent")
        found = {name: found[name].copy() for name in names}  # results lie in the arena, and would keep it
        backend.run("decoder", found)
        del found
        held[large] = process.memory_info().rss - before
        backend.close()
    assert held[True] < held[False] / 2, held


def test_images_of_many_sizes_do_not_add_up(toy: Bundle) -> None:
    """What the arena holds for one size fits no larger one: it goes back when the next is done."""
    process, grown = psutil.Process(), {}
    names = [spec.name for spec in toy.manifest.components["decoder"].inputs]
    for returns in (True, False):
        backend = opened(toy, "fp32")
        held = [process.memory_info().rss]
        for side in (1600, 1792, 1984, 2048, 2112):
            if not returns:
                backend._shape = ()  # as before the first image: there is nothing to give back
            found = backend.run("encoder", {"image": image(1, side, side)})
            found["latent_restored"] = found.pop("latent")
            backend.run("decoder", {name: found[name] for name in names})
            del found
            held.append(process.memory_info().rss)
        backend.close()
        grown[returns] = held[-1] - held[1]
    assert grown[True] < grown[False] / 2, {key: value >> 20 for key, value in grown.items()}
