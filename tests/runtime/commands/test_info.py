"""`dod-runtime info`: what it prints of a bundle, from its manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dod_runtime.__main__ import run
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import TargetEntry
from dod_runtime.commands.info import parity_verdict

ROW = {"component": "pipeline", "path": "auto", "image": "a.png", "threshold": "SNR >= 80 dB", "passed": True}


def verdict(bundle: Bundle, *rows: dict[str, object]) -> str:
    targets = {**bundle.manifest.targets, "openvino": TargetEntry(("fp32",))}
    return parity_verdict(replace(bundle.manifest, targets=targets, parity=tuple({**ROW, **row} for row in rows)))


def test_it_describes_the_bundle(toy: Bundle, capsys) -> None:
    assert run(["info", str(toy.folder)]) == 0
    text = capsys.readouterr().out
    for words in ("toy", "auto, haze, noise", "32 to 128 px", "multiples of 16 px", "1 to 3", "onnxruntime", "fp16"):
        assert words in text
    assert all(name in text for name in toy.manifest.files)
    assert f"{toy.manifest.files['onnx/fp32/encoder.safetensors'].bytes / 1e6:.3f}" in text


def test_it_describes_engines(tmp_path: Path, capsys) -> None:
    from tests.runtime.toy_bundle import write_toy_bundle

    target = {"precisions": ["fp16"], "version": "1.7", "compute_capabilities": ["8.6", "8.9"]}
    paths = {name: f"engines/{name}.engine" for name in ("encoder", "decoder")}
    engines = dict.fromkeys(paths.values(), b"x")
    folder = write_toy_bundle(
        tmp_path / "b", targets={"tensorrt_rtx": {**target, "engines": paths}}, engines=engines, shares={}
    )
    assert run(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("tensorrt_rtx"))
    assert line.split() == ["tensorrt_rtx", "fp16", "1.7", "8.6,", "8.9", "2"]
    (line,) = (line for line in text.splitlines() if line.startswith("gate"))
    assert "bypass" in line


def test_the_verdict_of_parity(toy: Bundle) -> None:
    assert "not measured" in verdict(toy)
    assert verdict(toy, {"step": "onnx fp32"}, {"step": "openvino fp32"}).startswith("passed: 2")
    assert verdict(toy, {"step": "onnx fp32"}, {"step": "onnx fp32", "threshold": None}).startswith("passed: 1")
    failed = verdict(toy, {"step": "onnx fp32"}, {"step": "onnx fp16", "image": "b.png", "passed": False})
    assert failed.startswith("FAILED: 1 of 2") and "onnx fp16" in failed and "b.png" in failed


def test_a_precision_that_is_not_offered_does_not_fail(toy: Bundle) -> None:
    found = verdict(toy, {"step": "onnx fp32"}, {"step": "openvino bf16", "passed": False})
    assert found.startswith("passed: 1") and "not offered: openvino bf16" in found


def test_paths_that_were_not_checked_are_named(toy: Bundle) -> None:
    unchecked = {"step": "not checked", "path": "haze", "threshold": None, "passed": None}
    assert "not checked on haze" in verdict(toy, {"step": "onnx fp32"}, unchecked)


def test_errors_are_one_line(tmp_path: Path, copy: Path, capsys) -> None:
    assert run(["info", str(tmp_path / "none")]) == 2
    data = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**data, "schema": 1}))
    assert run(["info", str(copy)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, True] and "schema 1" in lines[1]


def test_it_loads_no_backend(toy: Bundle) -> None:
    code = (
        "import sys; from dod_runtime.__main__ import run; "
        f"assert run(['info', {str(toy.folder)!r}]) == 0; "
        "assert not {'onnxruntime', 'openvino', 'tensorrt', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", [(), ("--quiet",)])
def test_quiet_prints_the_results(option: tuple[str, ...], toy: Bundle, capsys) -> None:
    assert run(["info", str(toy.folder), *option]) == 0
    assert "toy" in capsys.readouterr().out
