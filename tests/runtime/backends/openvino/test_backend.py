"""The backend on the real OpenVINO: it agrees with ONNX Runtime, and bf16 needs its parity check."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dod_runtime import Restorer
from dod_runtime.backends import open_backend
from dod_runtime.backends.base import BackendInfo, BackendOptions
from dod_runtime.backends.onnxruntime import OnnxRuntime
from dod_runtime.backends.openvino.backend import (
    OpenVINO,
    is_installed,
    machine_reason,
    reduced_precisions,
    unavailable_reason,
)
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.write import write_bundle
from dod_runtime.errors import BackendError, BundleError, UsageError
from tests.runtime.toy_bundle import OPENVINO, write_toy_bundle

FAILED = {
    "image": "rain.png",
    "path": "auto",
    "component": "pipeline",
    "step": "openvino bf16",
    "psnr_db": 41.96,
    "threshold": "PSNR >= 45 dB",
    "passed": False,
}
with_bf16 = pytest.mark.skipif("bf16" not in reduced_precisions(), reason="this CPU does not compute in bf16")


@pytest.fixture
def ov_copy(tmp_path: Path) -> Path:
    """The folder of a bundle that a test may damage."""
    return write_toy_bundle(tmp_path / "bundle", precisions=["fp32"], targets=OPENVINO)


def opened(bundle: Bundle, precision: str = "auto", num_threads: int | None = 1) -> OpenVINO:
    return OpenVINO("openvino", bundle, BackendOptions(precision=precision, num_threads=num_threads))


def image(batch: int = 1, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)


def snr(reference: np.ndarray, found: np.ndarray) -> float:
    noise = float(((reference - found) ** 2).sum())
    return math.inf if noise == 0 else 10 * math.log10(float((reference**2).sum()) / noise)


def edited(folder: Path, **entries: object) -> Bundle:
    data = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**data, **entries}))
    return Bundle.open(folder)


@pytest.mark.parametrize("size", [(1, 32, 48), (3, 64, 32)])
@pytest.mark.parametrize("condition", ["auto", "haze", "noise"])
def test_every_value_agrees_with_onnxruntime(condition: str, size: tuple[int, int, int], ov_toy: Bundle) -> None:
    crops = np.random.default_rng(1).uniform(-1, 1, (size[0], 4, 3, 16, 16)).astype(np.float32)
    values: dict[str, np.ndarray] = {"image": image(*size), "crops": crops}
    mine, other = opened(ov_toy), OnnxRuntime("onnxruntime_cpu", ov_toy, BackendOptions(num_threads=1))
    names = (
        ("mfm", "encoder", "unet_dynamic", "decoder") if condition == "auto" else ("encoder", "unet_merged", "decoder")
    )
    for component in names:
        inputs = {spec.name: values[spec.name] for spec in ov_toy.manifest.components[component].inputs}
        expected = other.run(component, inputs, None if condition == "auto" else condition)
        found = mine.run(component, inputs, None if condition == "auto" else condition)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            assert snr(value, found[name]) >= 100, f"{component}: {name}"
        values |= expected


@pytest.mark.parametrize("condition", ["haze", "noise"])
def test_merged_equals_dynamic_at_the_prototype(condition: str, ov_toy: Bundle) -> None:
    backend = opened(ov_toy)
    latent = backend.run("encoder", {"image": image()})["latent"]
    modulation = ov_toy.modulation(condition)[None]
    dynamic = backend.run("unet_dynamic", {"latent": latent, "modulation": modulation})["latent_restored"] - latent
    merged = backend.run("unet_merged", {"latent": latent}, condition)["latent_restored"] - latent
    assert snr(dynamic, merged) >= 100
    other = backend.run("unet_merged", {"latent": latent}, "noise" if condition == "haze" else "haze")
    assert snr(dynamic, other["latent_restored"] - latent) < 20


@pytest.mark.parametrize("kept", [1, 8])
def test_switching_back_gives_the_same_bits(kept: int, ov_toy: Bundle) -> None:
    backend = opened(ov_toy)
    backend._kept["unet_merged"] = kept
    latent = backend.run("encoder", {"image": image()})["latent"]
    first, other, again = (
        backend.run("unet_merged", {"latent": latent}, condition)["latent_restored"]
        for condition in ("haze", "noise", "haze")
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(backend._sessions["unet_merged"]) == min(kept, 2)


def test_threads_agree_with_one_after_the_other(ov_toy: Bundle) -> None:
    photos = [(image(height=16 * (2 + i % 3))[0].transpose(1, 2, 0) + 1) / 2 for i in range(12)]
    conditions = ["haze", "noise", "auto"] * 4
    with Restorer(ov_toy, "openvino", num_threads=1) as serial, Restorer(ov_toy, "openvino", num_threads=1) as shared:
        expected = [serial.restore(photo, name) for photo, name in zip(photos, conditions, strict=True)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(shared.restore, photos, conditions))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_do_not_change_after_later_runs(ov_toy: Bundle) -> None:
    backend = opened(ov_toy)
    first = backend.run("encoder", {"image": image()})["latent"]
    kept = first.copy()
    backend.run("encoder", {"image": -image()})
    backend.close()
    np.testing.assert_array_equal(first, kept)


def test_auto_takes_it_before_onnxruntime_on_the_cpu(ov_toy: Bundle, toy: Bundle, photo: np.ndarray) -> None:
    with Restorer(ov_toy, num_threads=1) as restorer, Restorer(toy, "onnxruntime_cpu", num_threads=1) as other:
        assert restorer.backend in ("openvino", "onnxruntime_cuda")
        difference = restorer.restore(photo, "haze").astype(int) - other.restore(photo, "haze")
        assert np.abs(difference).max() <= 1
    with pytest.raises(BackendError, match="built without the target openvino"):
        Restorer(toy, "openvino")


def test_models_are_compiled_at_their_first_use(ov_toy: Bundle) -> None:
    backend = opened(ov_toy)
    assert not backend._sessions
    backend.run("encoder", {"image": image()})
    assert list(backend._sessions) == ["encoder"]
    backend.close()
    backend.close()
    assert not backend._sessions


def test_sized_components_are_compiled_for_each_image_size(ov_toy: Bundle) -> None:
    backend = opened(ov_toy)
    backend._kept["encoder"] = 2
    images = [image(height=height) for height in (32, 48, 64)]
    first = [backend.run("encoder", {"image": each})["latent"] for each in images]
    assert [key[1] for key in backend._sessions["encoder"]] == [((1, 3, 48, 48),), ((1, 3, 64, 48),)]
    model = next(iter(backend._sessions["encoder"].values()))
    assert model.input(0).partial_shape.is_static
    for each, expected in zip(images, first, strict=True):
        np.testing.assert_array_equal(backend.run("encoder", {"image": each})["latent"], expected)
        backend.run("unet_merged", {"latent": expected}, "haze")
    assert len(backend._sessions["unet_merged"]) == 1


@pytest.mark.parametrize("condition", ["auto", "haze"])
def test_a_large_model_gives_the_same_results(condition: str, ov_toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    with Restorer(ov_toy, "openvino", num_threads=1) as saving:
        crops = np.random.default_rng(1).uniform(-1, 1, (1, 4, 3, 16, 16)).astype(np.float32)
        found = [saving.run_components(image(), crops, condition) for _ in range(2)]
        assert saving._backend._large  # type: ignore[attr-defined]
    monkeypatch.undo()
    with Restorer(ov_toy, "openvino", num_threads=1) as usual:
        expected = usual.run_components(image(), crops, condition)
    for each in found:
        np.testing.assert_array_equal(each, expected)


def test_precision_and_threads_are_as_requested(ov_toy: Bundle) -> None:
    import openvino

    backend = opened(ov_toy, num_threads=1)
    backend.run("encoder", {"image": image()})
    (model,) = backend._sessions["encoder"].values()
    assert model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    version = openvino.__version__.split("-")[0]
    assert backend.info == BackendInfo("openvino", version, "CPU, 1 thread", "fp32")


def test_bf16_is_refused_where_its_parity_check_failed(ov_copy: Path, ov_toy: Bundle) -> None:
    passed = {**FAILED, "image": "haze.png", "psnr_db": 50.0, "passed": True}
    bundle = edited(ov_copy, parity=[passed, FAILED])
    words = r"bf16.*42\.0 dB.*rain\.png \(auto\).*PSNR >= 45 dB"
    with pytest.raises(BackendError, match=rf"backend openvino.*: {words}"):
        Restorer(bundle, "openvino", precision="bf16")
    with pytest.raises(BackendError, match=rf"no backend.*openvino: {words}"):
        Restorer(bundle, precision="bf16")
    with pytest.raises(BackendError, match="fp32.*not bf16"):
        Restorer(ov_toy, "openvino", precision="bf16")
    with pytest.raises(BackendError, match="fp32.*not fp16"):
        Restorer(ov_toy, "openvino", precision="fp16")


def test_bf16_needs_the_graphs_in_fp32(tmp_path: Path) -> None:
    fp16 = Bundle.open(write_toy_bundle(tmp_path / "fp16", precisions=["fp16"]))
    with pytest.raises(UsageError, match="'bf16'"):
        Restorer(fp16, precision="bf16")
    with pytest.raises(BundleError, match="bf16"):
        write_toy_bundle(tmp_path / "b", precisions=["fp16"], targets={"openvino": {"precisions": ["bf16"]}})


@with_bf16
def test_bf16_where_its_parity_check_passed(tmp_path: Path, photo: np.ndarray) -> None:
    targets = {"openvino": {"precisions": ["fp32", "bf16"]}}
    bundle = Bundle.open(write_toy_bundle(tmp_path / "b", precisions=["fp32"], targets=targets))
    with (
        Restorer(bundle, "openvino", num_threads=1) as exact,
        Restorer(bundle, precision="bf16", num_threads=1) as reduced,
    ):
        assert exact.precision == "fp32", "auto never takes a reduced precision"
        assert (reduced.backend, reduced.precision) == ("openvino", "bf16")
        images = image()
        expected, found = (each.run_components(images, None, "haze") for each in (exact, reduced))
    assert 20 < snr(expected, found) < 70, "close, but computed in bf16"


def test_failures_are_one_line(ov_toy: Bundle) -> None:
    backend = opened(ov_toy)
    for inputs in ({"image": np.zeros((1, 4, 32, 32), np.float32)}, {"other": image()}, {}):
        with pytest.raises(BackendError, match="encoder: ") as caught:
            backend.run("encoder", inputs)
        assert "\n" not in str(caught.value) and "src/" not in str(caught.value)
    with pytest.raises(UsageError, match="'rain'"):
        backend.run("unet_merged", {}, "rain")


def test_changed_weights_are_not_loaded(ov_copy: Path) -> None:
    path = ov_copy / "onnx/fp32/decoder.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"decoder\.safetensors was changed"):
        opened(Bundle.open(ov_copy)).run("decoder", {})


def test_merge_entries_must_name_constants(ov_copy: Path) -> None:
    entries = json.loads((ov_copy / "bundle.json").read_text())["merge"]
    absent = [{**entries[0], "weight": "out.lora"}]
    with pytest.raises(BundleError, match=r"conv.*'out\.lora'"):
        opened(edited(ov_copy, merge=absent)).run("unet_merged", {}, "haze")


def test_merged_values_must_be_in_the_graph(ov_toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(ov_toy)
    monkeypatch.setattr(ov_toy, "merged", lambda *_: {"conv.lora_A.weight": np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match=r"unet_merged.*'conv\.lora_A\.weight'"):
        backend.run("unet_merged", {}, "haze")


def test_a_file_that_is_no_graph(tmp_path: Path, ov_copy: Path) -> None:
    data = json.loads((ov_copy / "bundle.json").read_text())
    (ov_copy / "onnx/fp32/encoder.onnx").write_bytes(b"no graph")
    bundle = write_bundle(data, ov_copy, tmp_path / "spoiled")
    with pytest.raises(BundleError, match=r"encoder\.onnx: \w+"):
        opened(bundle).run("encoder", {"image": image()})


def test_without_the_library_the_error_has_the_command(ov_toy: Bundle) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from dod_runtime import Restorer\n"
        "from dod_runtime.errors import BackendError\n"
        f"print(Restorer({str(ov_toy.folder)!r}).backend)\n"
        f"try: Restorer({str(ov_toy.folder)!r}, 'openvino')\n"
        "except BackendError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, refusal = done.stdout.splitlines()
    assert taken.startswith("onnxruntime_")
    assert "backend openvino" in refusal
    assert "pip install openvino" in refusal and "onnxruntime_cpu" in refusal


def test_opened_by_name(ov_toy: Bundle) -> None:
    assert open_backend("openvino", ov_toy, BackendOptions()).info.name == "openvino"
    assert unavailable_reason("openvino", ov_toy, BackendOptions()) is None
    assert machine_reason("openvino", BackendOptions()) is None and is_installed("openvino")
