"""`benchmarks/graphs.py` on the tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.graphs import main
from tests.benchmarks.commands import refused, run, run_here


@pytest.mark.slow
def test_graphs_before_and_after(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = tmp_path / "graphs.json"
    names = "mfm", "encoder"
    done = run(
        "graphs",
        "--checkpoint",
        tiny_checkpoint,
        "--graphs",
        *names,
        "--size",
        64,
        "--runs",
        2,
        "--json",
        written,
        where=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    timed = {(row["graph"], row["state"], row["backend"]) for row in found["times"]}
    backends = "torch", "onnxruntime", "openvino"
    assert timed == {(name, state, each) for name in names for state in ("before", "after") for each in backends}
    assert all(row["ms"] > 0 for row in found["times"])
    costs = found["costs"]["unet_merged"]
    assert costs["after"]["parameters"] < costs["before"]["parameters"]


@pytest.mark.slow
def test_cost_of_lora_in_the_unet(tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = "unet_plain", "unet_merged", "unet_dynamic"
    options = "--backends", "torch", "--after", "--size", 64, "--runs", 2, "--json", tmp_path / "graphs.json"
    done = run("graphs", "--checkpoint", tiny_checkpoint, "--graphs", *names, *options, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch: a merged path costs" in done.stdout and "torch: the dynamic path costs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--graphs", "unet_mergd"), ("'unet_mergd'", "'unet_merged'")),
        (("--backends", "openvin"), ("'openvin'", "'openvino'")),
        (("--size", 100), ("--size 100", "multiples of 64")),
        (("--size", 0), ("--size", "at least 1")),
        (("--checkpoint", "nowhere"), ("nowhere",)),
        (("--model", "nowhere"), ("nowhere",)),  # former spelling
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], words: tuple[str, ...]) -> None:
    refused(run_here(main, *arguments), *words)
