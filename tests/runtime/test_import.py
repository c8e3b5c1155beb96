"""Importing the package is cheap and loads nothing that it may not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "onnx", "safetensors")
PROBE = """
import sys, time
import numpy, PIL.Image
start = time.perf_counter()
import dod_runtime
from dod_runtime import Bundle, Restorer
print(time.perf_counter() - start, *[name for name in {forbidden!r} if name in sys.modules])
"""


def probe() -> tuple[float, list[str]]:
    code = PROBE.format(forbidden=FORBIDDEN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def test_import_loads_no_backend_and_no_torch() -> None:
    assert probe()[1] == []


def test_import_is_quick() -> None:
    assert min(probe()[0] for _ in range(3)) < 0.2


def test_unknown_attribute() -> None:
    import dod_runtime

    with pytest.raises(AttributeError, match="Restorator"):
        _ = dod_runtime.Restorator  # type: ignore[attr-defined]
    assert "Restorer" in dir(dod_runtime)
