"""Reasons why engines cannot run, with engines of TensorRT-RTX that are really built here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dod_runtime import Restorer
from dod_runtime.backends.base import BackendOptions
from dod_runtime.backends.gpu import Gpu
from dod_runtime.backends.tensorrt.availability import (
    _validity_reason,
    diagnosis,
    gpu_reason,
    is_installed,
    machine_reason,
    unavailable_reason,
    version_reason,
)
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import TargetEntry
from dod_runtime.errors import BackendError, BundleError
from tests.runtime.backends.marks import without_gpu
from tests.runtime.toy_bundle import write_toy_bundle

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
NAME = "tensorrt_rtx"
OPTIONS = BackendOptions()
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0")


def changed(bundle: Bundle, **fields: object) -> Bundle:
    """Return the bundle with changed fields of its target."""
    target = replace(bundle.manifest.targets[NAME], **fields)  # type: ignore[arg-type]
    return Bundle(bundle.folder, replace(bundle.manifest, targets={NAME: target}))


@without_gpu
def test_without_a_driver(engines: Bundle) -> None:
    assert is_installed(NAME)
    for reason in (unavailable_reason(NAME, engines, OPTIONS), machine_reason(NAME, OPTIONS)):
        assert reason and "NVIDIA" in reason
    with pytest.raises(BackendError, match="tensorrt_rtx.*NVIDIA.*onnxruntime_cpu"):
        Restorer(engines, backend=NAME)


def test_reasons_that_need_no_gpu(engines: Bundle, toy: Bundle) -> None:
    only = {"encoder": engines.manifest.targets[NAME].engines["encoder"]}
    for bundle, options, words in (
        (toy, OPTIONS, (NAME,)),
        (engines, BackendOptions(precision="fp32"), ("fp16", "not fp32")),
        (changed(engines, engines=only), OPTIONS, ("decoder", NAME)),
        (changed(engines, version="1.6.9.1"), OPTIONS, ("1.6.9.1", trt.__version__)),
    ):
        reason = unavailable_reason(NAME, bundle, options)
        assert reason and all(word in reason for word in words)


def test_a_missing_library(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    target = {"precisions": ["fp16"], "version": "11.0", "compute_capabilities": ["9.0"]}
    paths = {name: f"engines/tensorrt/{name}.engine" for name in ("encoder", "decoder")}
    folder = write_toy_bundle(
        tmp_path / "b", targets={"tensorrt": {**target, "engines": paths}}, engines=dict.fromkeys(paths.values(), b"x")
    )
    try:
        import tensorrt  # noqa: F401
    except Exception:
        for reason in (
            unavailable_reason("tensorrt", Bundle.open(folder), OPTIONS),
            machine_reason("tensorrt", OPTIONS),
        ):
            assert reason and "pip install tensorrt" in reason
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
    hopper = Gpu("NVIDIA H200", "9.0", "13.0")
    for gpu, words in ((RTX_4090, ("NVIDIA L4", RTX_4090.name)), (hopper, ("8.6, 8.9", "NVIDIA H200", "9.0"))):
        reason = gpu_reason(target, gpu)
        assert reason and all(word in reason for word in words)


@without_gpu
def test_the_library_checks_the_header_of_an_engine(engines: Bundle) -> None:
    reason = _validity_reason(NAME, engines, trt)
    assert reason and reason.startswith("tensorrt_rtx refuses")


def test_a_malformed_engine(tmp_path: Path) -> None:
    paths = {"encoder": "engines/rtx/encoder.engine"}
    target = {"precisions": ["fp16"], "engines": paths}
    folder = write_toy_bundle(tmp_path / "b", targets={NAME: target}, engines={paths["encoder"]: bytes(64)})
    reason = _validity_reason(NAME, Bundle.open(folder), trt)
    assert reason and "malformed engine" in reason
    path = folder / paths["encoder"]
    path.write_bytes(b"\x01" + bytes(63))
    with pytest.raises(BundleError, match=r"encoder\.engine was changed"):
        _validity_reason(NAME, Bundle.open(folder), trt)


def test_diagnosis() -> None:
    assert diagnosis(trt, 0) == ""
    assert diagnosis(trt, 3) == "version mismatch, unsupported cc"
