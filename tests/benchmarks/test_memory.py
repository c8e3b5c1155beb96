"""`benchmarks/memory.py` on a bundle of the `tiny` preset: real processes, and what they held."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from benchmarks import memory
from dod_runtime.errors import BackendError
from export.memory import MemoryMeter
from tests.benchmarks.commands import refused, run


def test_table_and_json(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("memory", "--bundle", tiny_bundle, "--size", 64, "--conditions", "auto", where=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "build" / "memory.json").read_text())["rows"]
    assert [(row["backend"], row["path"]) for row in rows] == [("openvino", "auto"), ("onnxruntime_cpu", "auto")]
    for row in rows:
        assert row["opening_seconds"] > 0.1 and 20e6 < row["opening_bytes"] <= row["bytes"] < 2e9
        assert len(row["image_seconds"]) == 2 and min(row["image_seconds"]) > 0
        assert f"{row['bytes'] / 1e9:.2f}" in done.stdout and f"{row['opening_seconds']:.1f}" in done.stdout


def test_the_opening_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    words = "--size", 64, "--conditions", "noise", "--backends", "openvino", "--images", 0
    done = run("memory", "--bundle", tiny_bundle, *words, where=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "build" / "memory.json").read_text())["rows"]
    assert row["opening_seconds"] > 0.1 and row["image_seconds"] == []


def test_a_process_that_holds_more_shows_it() -> None:
    code = "import time; held = bytearray(300 << 20); time.sleep(2)"
    with psutil.Popen([memory.sys.executable, "-c", code]) as process, MemoryMeter(process) as meter:
        process.wait()
    assert 300 << 20 <= meter.peak < 400 << 20


def test_what_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--backends", "openvin"), "unknown backend of the CPU 'openvin' (did you mean 'openvino'?)"),
        (("--conditions", "hase"), "'hase'"),
        (("--size", 4000), "4000"),
        (("--images", -1), "--images must be at least 0, not -1"),
    ):
        refused(run("memory", "--bundle", tiny_bundle, *words, where=tmp_path), message)
    with pytest.raises(BackendError, match="openvino failed on hase: .*unknown condition"):
        memory.measure([], 64, tiny_bundle, "hase", "openvino")
