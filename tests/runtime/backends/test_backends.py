"""Which backend is taken, why, and what a backend that cannot run says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod_runtime.backends import BACKENDS, available_backends, open_backend
from dod_runtime.backends.base import Options, choose_precision
from dod_runtime.backends.gpu import Gpu, find_gpu
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BackendError, UsageError
from tests.runtime.toy_bundle import write_toy_bundle


def gpu_here() -> bool:
    try:
        find_gpu(0)
    except BackendError:
        return False
    return True


without_gpu = pytest.mark.skipif(gpu_here(), reason="says what a machine without a GPU says")


def test_survey_answers_for_every_backend(toy: Bundle) -> None:
    reasons = available_backends(toy)
    assert tuple(reasons) == BACKENDS
    assert reasons["onnxruntime_cpu"] is None
    assert reasons["tensorrt"] == "this bundle was built without the target tensorrt"


@without_gpu
def test_auto_takes_the_first_that_can_and_says_why(toy: Bundle) -> None:
    backend, reason = open_backend("auto", toy, Options())
    assert backend.name == "onnxruntime_cpu"
    assert reason.startswith("the first that can run here (tensorrt: this bundle was built without")
    assert "onnxruntime_cuda: " in reason


@without_gpu
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_cpu"])
def test_named(name: str, toy: Bundle) -> None:
    backend, reason = open_backend(name, toy, Options())
    assert backend.name == "onnxruntime_cpu"
    assert (reason == "asked for") is (name == "onnxruntime_cpu")


def test_unknown_names(toy: Bundle) -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'tensorrt-rtx' .did you mean 'tensorrt_rtx'"):
        open_backend("tensorrt-rtx", toy, Options())
    with pytest.raises(UsageError, match=r"unknown precision 'fp8'.* auto, fp32, fp16, bf16"):
        open_backend("auto", toy, Options(precision="fp8"))


def test_a_named_backend_that_cannot_run_says_why_and_what_can(toy: Bundle) -> None:
    with pytest.raises(BackendError) as caught:
        open_backend("tensorrt", toy, Options())
    text = str(caught.value)
    assert text.startswith("backend tensorrt cannot run here: this bundle was built without the target tensorrt")
    assert "What can run here: " in text and "onnxruntime_cpu" in text


def test_nothing_can_run(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "b", targets={"onnxruntime": {"precisions": ["fp16"]}})
    with pytest.raises(BackendError, match=r"no backend can run this bundle here: tensorrt: .*has fp16 for it"):
        open_backend("auto", Bundle.open(folder), Options(precision="fp32"))


def test_choose_precision() -> None:
    assert choose_precision("auto", ("fp16", "fp32"), "fp32") == "fp32"
    assert choose_precision("auto", ("fp16",), "fp32") == "fp16"
    assert choose_precision("fp32", ("fp16",), "fp16") is None


@without_gpu
def test_find_gpu_says_why_there_is_none() -> None:
    with pytest.raises(BackendError, match="NVIDIA"):
        find_gpu(0)


def test_gpu_slug() -> None:
    assert Gpu("NVIDIA GeForce RTX 4090 (Laptop)", "8.9", "13.0").slug == "nvidia-geforce-rtx-4090-laptop"


@pytest.mark.gpu
def test_find_gpu() -> None:
    gpu = find_gpu(0)
    assert gpu.name and "." in gpu.compute_capability
    with pytest.raises(BackendError, match="no GPU 99"):
        find_gpu(99)
