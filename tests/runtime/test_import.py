"""Imports of the package are lazy: nothing is loaded that may not be needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

BACKENDS = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"}
EXPORT = {"torch", "onnx", "safetensors"}


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that are loaded after running the code in a fresh interpreter."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_package_alone_loads_no_library() -> None:
    assert not {"numpy", "PIL", "msgspec", "tqdm"} & loaded_by("import dod_runtime")


def test_bundle_and_restorer_load_no_backend_and_no_torch() -> None:
    loaded = loaded_by("from dod_runtime import Bundle, Restorer")
    assert "numpy" in loaded and not (BACKENDS | EXPORT) & loaded


def test_unknown_attribute() -> None:
    import dod_runtime

    with pytest.raises(AttributeError, match="Restorator"):
        _ = dod_runtime.Restorator  # type: ignore[attr-defined]
    assert "Restorer" in dir(dod_runtime)
