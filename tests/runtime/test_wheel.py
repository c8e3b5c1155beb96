"""The distribution dod-runtime: built, installed in a fresh environment, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from dod_runtime.bundle.bundle import Bundle

RUNTIME = Path(__file__).parents[2] / "runtime"
PROBE = """
import sys
import dod_runtime
from dod_runtime import Restorer
assert not [name for name in ("torch", "onnxruntime", "tensorrt_rtx") if name in sys.modules], sys.modules
with Restorer(sys.argv[1]) as restorer:
    restorer.restore(sys.argv[2]).save(sys.argv[3])
    print(restorer.backend)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "runtime"
    shutil.copytree(RUNTIME, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_contains_dod_runtime_alone(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dod_runtime"}
    modules = {path.relative_to(RUNTIME).as_posix() for path in RUNTIME.rglob("*.py") if "build" not in path.parts}
    assert modules <= set(names)
    assert {"dod_runtime/py.typed"} <= set(names) and any(name.endswith("LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata and "torch" not in metadata.replace("no torch", "")
    for extra in ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"):
        assert f"Provides-Extra: {extra}\n" in metadata


@pytest.mark.slow
def test_restores_in_an_environment_without_torch(wheel: Path, toy: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    Image.fromarray(photo).save(tmp_path / "in.png")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the wheel, not the checkout

    def run(*arguments: object) -> str:
        done = subprocess.run([python, *map(str, arguments)], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[onnxruntime]")
    assert "torch" not in run("-m", "pip", "list")
    assert run("-c", PROBE, toy.folder, "in.png", "out.png") == "onnxruntime_cpu\n"
    run("-m", "dod_runtime", "restore", "in.png", "again.png", "--bundle", toy.folder)
    with Image.open(tmp_path / "out.png") as first, Image.open(tmp_path / "again.png") as second:
        assert first.size == (90, 60)
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
