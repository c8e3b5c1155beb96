"""The choice of a backend, its reasons, and the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dod_runtime import backends
from dod_runtime.backends import (
    BACKENDS,
    ON_CPU,
    BackendOptions,
    available_backends,
    check_precision,
    machine_reason,
    open_backend,
)
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import TargetEntry
from dod_runtime.errors import BackendError, UsageError
from tests.runtime.backends.marks import without_gpu
from tests.runtime.toy_bundle import write_toy_bundle

OPTIONS = BackendOptions()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records of the logger `dod_runtime`, from DEBUG on."""
    found: list[logging.LogRecord] = []
    handler, log = logging.Handler(), logging.getLogger("dod_runtime")
    handler.emit = found.append
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(handler)


def test_every_backend_has_a_reason_or_none(toy: Bundle) -> None:
    reasons = available_backends(toy)
    assert tuple(reasons) == BACKENDS
    assert reasons["onnxruntime_cpu"] is None
    for name in ("tensorrt", "openvino"):
        assert name in str(reasons[name])


def test_reasons_of_the_machine_need_no_bundle() -> None:
    assert machine_reason("onnxruntime_cpu") is None and machine_reason("openvino") is None
    for name in set(BACKENDS) - set(ON_CPU):
        reason = machine_reason(name, BackendOptions(device=99))
        assert reason and "\n" not in reason


@without_gpu
def test_auto_takes_the_first_available_backend_and_knows_why(toy: Bundle) -> None:
    info = open_backend("auto", toy, OPTIONS).info
    assert info.name == "onnxruntime_cpu" and "auto" in info.reason
    assert list(info.skipped) == ["tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "openvino"]
    assert all(info.skipped.values())


@without_gpu
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_cpu"])
def test_a_named_backend(name: str, toy: Bundle) -> None:
    info = open_backend(name, toy, OPTIONS).info
    assert info.name == "onnxruntime_cpu"
    assert (info.reason == "requested") is (name == "onnxruntime_cpu")
    assert list(info.skipped) == (["onnxruntime_cuda"] if name == "onnxruntime" else [])


def test_unknown_names(toy: Bundle) -> None:
    with pytest.raises(UsageError, match="'tensorrt-rtx'.*'tensorrt_rtx'"):
        open_backend("tensorrt-rtx", toy, OPTIONS)
    with pytest.raises(UsageError, match="'fp8'.* auto, fp32, fp16, bf16"):
        open_backend("auto", toy, BackendOptions(precision="fp8"))
    check_precision("bf16", toy)


def test_a_named_backend_that_cannot_run_says_why_and_which_can(toy: Bundle) -> None:
    with pytest.raises(BackendError, match="tensorrt.*built without.*onnxruntime_cpu"):
        open_backend("tensorrt", toy, OPTIONS)


def test_no_backend_can_run(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "b", targets={"onnxruntime": {"precisions": ["fp16"]}})
    with pytest.raises(BackendError, match="no backend.*tensorrt: .*onnxruntime_cpu: .*fp16.*fp32"):
        open_backend("auto", Bundle.open(folder), BackendOptions(precision="fp32"))


def test_the_choice_is_logged(toy: Bundle, records: list[logging.LogRecord]) -> None:
    info = open_backend("onnxruntime_cpu", toy, OPTIONS).info
    (record,) = records
    assert record.levelno == logging.INFO and str(info) in record.getMessage()


@without_gpu
@pytest.mark.parametrize("installed", [True, False])
def test_a_skipped_gpu_backend_is_a_warning_where_it_is_installed(
    installed: bool, toy: Bundle, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the bundle was built for it: here for tensorrt_rtx and onnxruntime, and not for tensorrt."""
    module = backends._module

    def pretended(name: str) -> object:
        found = module(name)
        monkeypatch.setattr(found, "is_installed", lambda name: installed)
        return found

    monkeypatch.setattr(backends, "_module", pretended)
    targets = {**toy.manifest.targets, "tensorrt_rtx": TargetEntry(("fp16",))}
    open_backend("auto", Bundle(toy.folder, replace(toy.manifest, targets=targets)), OPTIONS)
    warnings = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert len(warnings) == (2 if installed else 0)
    for name, warning in zip(("tensorrt_rtx", "onnxruntime_cuda"), warnings, strict=False):
        assert name in warning
