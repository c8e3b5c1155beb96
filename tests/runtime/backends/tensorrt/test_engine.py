"""Parts of an engine that can be tested without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod_runtime.backends.tensorrt.engine import cache_folder, logger_of, shape_reason


def test_shape_reason() -> None:
    assert shape_reason("image", (1, 3, 64, 64), (1, 3, 32, 32), (4, 3, 64, 64)) is None
    for shape in ((5, 3, 64, 64), (1, 3, 16, 64), (1, 4, 64, 64), (3, 64, 64)):
        reason = shape_reason("image", shape, (1, 3, 32, 32), (4, 3, 64, 64))
        assert reason and all(f"{each}" in reason for each in ("image", list(shape), [1, 3, 32, 32], [4, 3, 64, 64]))


def test_log_keeps_the_last_error() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    log = logger_of(trt)
    assert logger_of(trt) is log
    log.log(trt.ILogger.Severity.ERROR, "a\n  b")
    log.log(trt.ILogger.Severity.INFO, "c")
    assert log.last == "a b"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "dod-runtime"
