"""`benchmarks/memory.py` on the tiny bundle, with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.memory import measure_process
from dod_runtime.errors import BackendError
from tests.benchmarks.commands import refused, run


def test_table_and_json(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("memory", "--bundle", tiny_bundle, "--size", 64, "--conditions", "auto", where=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "build" / "memory.json").read_text())["results"]
    assert [(row["backend"], row["path"]) for row in rows] == [("openvino", "auto"), ("onnxruntime_cpu", "auto")]
    for row in rows:
        assert row["opening_seconds"] > 0.1 and 20e6 < row["opening_bytes"] <= row["bytes"] < 2e9
        assert len(row["image_seconds"]) == 2 and min(row["image_seconds"]) > 0
        assert f"{row['bytes'] / 1e9:.2f}" in done.stdout and f"{row['opening_seconds']:.1f}" in done.stdout


def test_opening_only(tiny_bundle: Path, tmp_path: Path) -> None:
    words = "--size", 64, "--conditions", "noise", "--backends", "openvino", "--num-images", 0
    done = run("memory", "--bundle", tiny_bundle, *words, where=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "build" / "memory.json").read_text())["results"]
    assert row["opening_seconds"] > 0.1 and row["image_seconds"] == []


def test_bad_arguments(tiny_bundle: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--backends", "openvin"), ("'openvin'", "'openvino'")),
        (("--conditions", "hase"), ("'hase'", "'haze'")),
        (("--size", 4000), ("4000",)),
        (("--images", -1), ("--num-images", "-1")),
    ):
        refused(run("memory", "--bundle", tiny_bundle, *arguments, where=tmp_path), *words)
    with pytest.raises(BackendError, match="openvino .* hase: .*'hase'"):
        measure_process([], 64, tiny_bundle, "hase", "openvino")
