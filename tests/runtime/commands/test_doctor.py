"""`dod-runtime doctor`: the backends and folders of this machine, and of machines that are pretended."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pytest

from dod_runtime.__main__ import run
from dod_runtime.backends import BACKENDS
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.commands import doctor
from tests.runtime.toy_bundle import write_toy_bundle


def status(text: str, backend: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{backend} ") and " can " not in line)
    return line


def test_this_machine(capsys) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in (f"numpy {numpy.__version__}", "pillow ", "GPU", tempfile.gettempdir()))
    assert all(status(text, name) for name in BACKENDS)
    assert status(text, "onnxruntime_cpu").endswith("available") and status(text, "openvino").endswith("available")


def test_with_a_bundle(toy: Bundle, ov_toy: Bundle, capsys) -> None:
    assert run(["doctor", str(toy.folder)]) == 0
    text = capsys.readouterr().out
    assert "openvino" in status(text, "openvino") and "available" not in status(text, "openvino")
    assert status(text, "onnxruntime_cpu").endswith("available") and "toy" in text.splitlines()[-1]
    assert run(["doctor", str(ov_toy.folder)]) == 0
    assert status(capsys.readouterr().out, "openvino").endswith("available")


def test_a_bundle_that_no_backend_can_run(tmp_path: Path, capsys) -> None:
    folder = write_toy_bundle(tmp_path / "b", precisions=["fp32"])
    text = (folder / "bundle.json").read_text().replace('"onnxruntime": {', '"other": {')
    (folder / "bundle.json").write_text(text)
    assert run(["doctor", str(folder)]) == 1
    assert "No backend" in capsys.readouterr().out


def test_a_missing_bundle_is_an_error(tmp_path: Path, capsys) -> None:
    assert run(["doctor", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_missing_libraries_have_their_commands() -> None:
    code = (
        "import sys; sys.modules.update(onnxruntime=None, openvino=None, tensorrt=None, tensorrt_rtx=None)\n"
        "from dod_runtime.__main__ import run; sys.exit(run(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == ""
    for package in ("openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13"):
        assert f"pip install {package}\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("No backend")


def test_onnxruntime_beside_onnxruntime_gpu(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert doctor.conflicts() == []
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3")
    (conflict,) = doctor.conflicts()
    assert "onnxruntime-gpu 1.2.3" in conflict and "pip uninstall" in conflict
    run(["doctor"])
    assert f"problem: {conflict}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("model name : x\nflags\t\t: fpu avx2 fma amx_bf16\n", ["AVX2", "FMA", "AMX BF16"]),
        ("Features\t: fp asimd bf16\n", ["NEON", "BF16"]),
        ("nothing", []),
    ],
)
def test_cpu_features(text: str, features: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(doctor, "CPUINFO", tmp_path / "cpuinfo")
    assert doctor.cpu_features() == features
    monkeypatch.setattr(doctor, "CPUINFO", tmp_path / "none")
    assert doctor.cpu_features() == []


def test_folders_that_are_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.writable_reason(tmp_path / "a" / "b") is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("no folder")
    reason = doctor.writable_reason(tmp_path / "file" / "cache")
    assert reason and str(tmp_path / "file" / "cache") in reason
    assert "TMPDIR" in str(doctor.writable_reason(None))


def test_problems_with_folders_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(doctor, "_temporary_folder", lambda: None)
    run(["doctor"])
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 2 and str(tmp_path / "file") in problems[0] and "TMPDIR" in problems[1]
