"""TensorRT-RTX: engines really built here; what can be told without a GPU is, the rest waits for one (mark `gpu`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dod_runtime import Restorer
from dod_runtime.backends import unavailable_reason
from dod_runtime.backends.base import Options
from dod_runtime.backends.gpu import Gpu, find_gpu
from dod_runtime.backends.onnxruntime import OnnxRuntime
from dod_runtime.backends.tensorrt.backend import (
    _conditions,
    _validity_reason,
    diagnosis,
    gpu_reason,
    refit_reason,
    refit_threshold,
    version_reason,
)
from dod_runtime.backends.tensorrt.device_memory import DeviceMemory, DeviceTensor, KeptByShape, call, load_cudart
from dod_runtime.backends.tensorrt.engine import cache_folder, logger_of, shape_reason
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import REFITTED, TargetEntry
from dod_runtime.errors import BackendError, BundleError
from tests.runtime.backends.test_backends import without_gpu
from tests.runtime.toy_bundle import write_toy_bundle
from tests.runtime.toy_engines import with_engines

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
NAME = "tensorrt_rtx"
OPTIONS = Options()
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0")


@pytest.fixture(scope="session")
def engines(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy with engines for the GPU that is here, else for 8.6."""
    try:
        capability = find_gpu(0).compute_capability
    except BackendError:
        capability = "8.6"
    return Bundle.open(with_engines(toy, tmp_path_factory.mktemp("engines") / "bundle", NAME, capability))


def changed(bundle: Bundle, **fields: object) -> Bundle:
    """The same bundle, its target of another kind."""
    target = replace(bundle.manifest.targets[NAME], **fields)  # type: ignore[arg-type]
    return Bundle(bundle.folder, replace(bundle.manifest, targets={NAME: target}))


@without_gpu
def test_without_a_driver(engines: Bundle) -> None:
    reason = unavailable_reason(NAME, engines, OPTIONS)
    assert reason and "NVIDIA" in reason
    with pytest.raises(BackendError, match=r"backend tensorrt_rtx cannot run here: no NVIDIA.*onnxruntime_cpu"):
        Restorer(engines, backend=NAME)


def test_reasons_that_come_before_the_gpu(engines: Bundle, toy: Bundle) -> None:
    assert unavailable_reason(NAME, toy, OPTIONS) == "this bundle was built without the target tensorrt_rtx"
    assert unavailable_reason(NAME, engines, Options(precision="fp32")) == "its engines are fp16, not fp32"
    only = {"encoder": engines.manifest.targets[NAME].engines["encoder"]}
    assert unavailable_reason(NAME, changed(engines, engines=only), OPTIONS) == (
        "this bundle lacks the engine of decoder for tensorrt_rtx"
    )
    older = unavailable_reason(NAME, changed(engines, version="1.6.9.1"), OPTIONS)
    assert older == f"its engines were built with tensorrt_rtx 1.6.9.1, and {trt.__version__} is installed"


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    target = {"precisions": ["fp16"], "version": "11.0", "compute_capabilities": ["9.0"]}
    paths = {name: f"engines/tensorrt/{name}.engine" for name in ("encoder", "decoder")}
    folder = write_toy_bundle(
        tmp_path / "b", targets={"tensorrt": {**target, "engines": paths}}, engines=dict.fromkeys(paths.values(), b"x")
    )
    try:
        import tensorrt  # noqa: F401
    except Exception:
        reason = unavailable_reason("tensorrt", Bundle.open(folder), OPTIONS)
        assert reason and "tensorrt cannot be imported" in reason and "pip install tensorrt" in reason
    else:
        pytest.skip("tensorrt is installed")


def test_versions() -> None:
    target = TargetEntry(("fp16",), version="1.7.1.116")
    assert version_reason("tensorrt_rtx", target, "1.7.2.5") is None
    assert version_reason("tensorrt_rtx", target, "1.8.0.1")
    assert version_reason("tensorrt", target, "1.7.2.5")
    assert version_reason("tensorrt", target, "1.7.1.116") is None


def test_gpus() -> None:
    target = TargetEntry(("fp16",), gpu="NVIDIA L4", compute_capabilities=("8.6", "8.9"))
    assert gpu_reason(replace(target, gpu=""), RTX_4090) is None
    assert gpu_reason(target, RTX_4090) == ("its engines were built on NVIDIA L4, and this is NVIDIA GeForce RTX 4090")
    hopper = Gpu("NVIDIA H200", "9.0", "13.0")
    assert gpu_reason(target, hopper) == ("its engines are for compute capability 8.6, 8.9, and NVIDIA H200 has 9.0")


@without_gpu
def test_the_library_is_asked_about_the_engine(engines: Bundle) -> None:
    reason = _validity_reason(NAME, engines, trt)
    assert reason and reason.startswith("tensorrt_rtx refuses its engines: Error reading CUDA GPU properties")


def test_an_engine_that_is_none_is_malformed(tmp_path: Path) -> None:
    paths = {"encoder": "engines/rtx/encoder.engine"}
    target = {"precisions": ["fp16"], "engines": paths}
    folder = write_toy_bundle(tmp_path / "b", targets={NAME: target}, engines={paths["encoder"]: bytes(64)})
    assert _validity_reason(NAME, Bundle.open(folder), trt) == "tensorrt_rtx refuses its engines: malformed engine"
    path = folder / paths["encoder"]
    path.write_bytes(b"\x01" + bytes(63))
    with pytest.raises(BundleError, match=r"encoder\.engine was changed"):
        _validity_reason(NAME, Bundle.open(folder), trt)


def test_diagnosis() -> None:
    assert diagnosis(trt, 0) == ""
    assert diagnosis(trt, 3) == "version mismatch, unsupported cc"


def test_conditions_are_those_with_all_their_engines(toy: Bundle) -> None:
    assert _conditions(toy, TargetEntry(("fp16",), engines={"mfm": "", "unet_dynamic": "", "unet_haze": ""})) == (
        "auto",
        "haze",
    )
    refitted = TargetEntry(("fp16",), engines={"unet_dynamic": "", REFITTED: ""})
    assert _conditions(toy, refitted) == ("haze", "noise")
    assert _conditions(toy, TargetEntry(("fp16",), engines={"unet_dynamic": "", "unet_noise": ""})) == ("noise",)


def test_a_wrong_exchange_of_weights_is_seen(toy: Bundle) -> None:
    """By what ONNX Runtime computes from the fp16 graphs: as it is to be, with a bias of zero, with other weights."""
    latent = np.random.default_rng(0).standard_normal((1, 192, 4, 4), np.float32)
    inputs = {"latent": latent, "modulation": toy.modulation("haze")[None]}
    backend = OnnxRuntime("onnxruntime_cpu", toy, Options(precision="fp16", num_threads=1))
    expected = backend.run("unet_dynamic", inputs)["latent_restored"]

    def found(spoilt: str = "", condition: str = "haze") -> np.ndarray:
        values = toy.merged(toy.manifest.precisions["fp16"], condition)
        values |= {name: np.zeros_like(value) for name, value in values.items() if name == spoilt}
        session = backend._open("unet_merged", values, ())
        return session.run(["latent_restored"], {"latent": latent})[0]

    least = refit_threshold(toy.manifest)
    assert least == 40 and refit_reason(expected, found(), least) is None
    for wrong in (found("conv.bias"), found(condition="noise"), np.full_like(expected, np.nan)):
        reason = refit_reason(expected, wrong, least)
        assert reason and reason.endswith("and 40.0 dB are asked for")
    rows = ({"step": "half", "component": "unet_merged", "snr_db": 69.5}, {"step": "half", "component": "mfm"})
    assert refit_threshold(replace(toy.manifest, parity=rows)) == 61.5


def test_shape_reason() -> None:
    assert shape_reason("image", (1, 3, 64, 64), (1, 3, 32, 32), (4, 3, 64, 64)) is None
    for shape in ((5, 3, 64, 64), (1, 3, 16, 64), (1, 4, 64, 64), (3, 64, 64)):
        reason = shape_reason("image", shape, (1, 3, 32, 32), (4, 3, 64, 64))
        assert reason == f"image has the shape {list(shape)}; this engine takes [1, 3, 32, 32] to [4, 3, 64, 64]"


def test_buffers_are_kept_by_shape() -> None:
    freed: list[str] = []
    kept = KeptByShape(freed.append, most=2)
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for shape in ("small", "large", "small"):
        kept.select(shape)
        assert kept.get("latent", lambda shape=shape: make(f"{shape} latent")) == f"{shape} latent"
    assert made == ["small latent", "large latent"] and freed == []
    kept.select("new")
    assert freed == ["large latent"]
    kept.get("latent", lambda: make("new latent"))
    kept.shrink()
    assert freed == ["large latent", "small latent"]
    kept.shrink(0)
    assert freed[-1] == "new latent"


def test_tensor_sizes() -> None:
    assert DeviceTensor(0, (2, 3, 4), np.dtype(np.float16)).bytes == 48
    assert DeviceTensor(0, (0, 3), np.dtype(np.float32)).bytes == 1


@without_gpu
def test_cuda_says_35_in_words() -> None:
    with pytest.raises(BackendError, match=r"cudaGetDeviceCount: .* \(cudaError \d+\)"):
        call(load_cudart().cudaGetDeviceCount)
    with pytest.raises(BackendError, match="cudaError"):
        DeviceMemory(0)


def test_log_keeps_the_last_error() -> None:
    log = logger_of(trt)
    assert logger_of(trt) is log
    log.log(trt.ILogger.Severity.ERROR, "a\n  b")
    log.log(trt.ILogger.Severity.INFO, "c")
    assert log.last == "a b"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "dod-runtime"


@pytest.fixture
def on_gpu(engines: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restorer:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reason = unavailable_reason(NAME, engines, OPTIONS)
    if reason:
        pytest.skip(reason)
    return Restorer(engines, backend=NAME)


@pytest.mark.gpu
@pytest.mark.parametrize("condition", ["auto", "haze", "noise"])
def test_agrees_with_onnxruntime(condition: str, on_gpu: Restorer, engines: Bundle, photo: np.ndarray) -> None:
    expected = Restorer(engines, backend="onnxruntime_cpu").restore(photo, condition)
    with on_gpu:
        found = on_gpu.restore(photo, condition)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2  # type: ignore[union-attr]


@pytest.mark.gpu
def test_switching_shapes_and_conditions_is_idempotent(on_gpu: Restorer, photo: np.ndarray) -> None:
    with on_gpu:
        first = on_gpu.restore(photo, "haze")
        for side in (10, 40, 50, 60, 90):
            on_gpu.restore(photo[:side, :side], "noise")
        np.testing.assert_array_equal(first, on_gpu.restore(photo, "haze"))


@pytest.mark.gpu
def test_one_engine_for_all_conditions(toy: Bundle, tmp_path: Path, photo: np.ndarray, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle.open(with_engines(toy, tmp_path / "bundle", NAME, find_gpu(0).compute_capability, refit=True))
    reason = unavailable_reason(NAME, bundle, OPTIONS)
    if reason:
        pytest.skip(reason)
    with Restorer(bundle, backend=NAME) as restorer, Restorer(bundle, backend="onnxruntime_cpu") as reference:
        assert restorer.conditions == ("auto", "haze", "noise")
        first, other, again = (restorer.restore(photo, condition) for condition in ("haze", "noise", "haze"))
        np.testing.assert_array_equal(first, again)
        for found, condition in ((first, "haze"), (other, "noise")):
            expected = reference.restore(photo, condition)
            assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2  # type: ignore[union-attr]


@pytest.mark.gpu
def test_threads_take_turns(on_gpu: Restorer, photo: np.ndarray) -> None:
    jobs = [(photo[: 20 + i * 5], condition) for i, condition in enumerate(["haze", "noise", "auto"] * 4)]
    with on_gpu, ThreadPoolExecutor(3) as pool:
        serial = [on_gpu.restore(*job) for job in jobs]
        for one, other in zip(serial, pool.map(lambda job: on_gpu.restore(*job), jobs), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
def test_observed_seconds_and_the_cache(on_gpu: Restorer, photo: np.ndarray, tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    prepared = on_gpu.prepare(photo)
    assert prepared.crops is not None
    with on_gpu:
        on_gpu.run_components(prepared.image[None], prepared.crops[None], observe=seen.__setitem__)
    assert set(seen) == {"mfm", "encoder", "unet_dynamic", "decoder"} and all(value > 0 for value in seen.values())
    assert list((tmp_path / "dod-runtime").glob("tensorrt_rtx-*.cache"))
    with pytest.raises(BackendError, match="was closed"):
        on_gpu.restore(photo)
