"""The command that times graphs one by one, in a process of its own, on a model small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import graphs

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/graphs.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_graphs_before_and_after(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = tmp_path / "graphs.json"
    names = "mfm", "encoder"
    done = run("--model", tiny_checkpoint, "--graphs", *names, "--size", 64, "--runs", 2, "--json", written)
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    timed = {(row["graph"], row["state"], row["backend"]) for row in found["times"]}
    backends = "torch", "onnxruntime", "openvino"
    assert timed == {(name, state, each) for name in names for state in ("before", "after") for each in backends}
    assert all(row["ms"] > 0 for row in found["times"])
    costs = found["costs"]["unet_merged"]
    assert costs["after"]["parameters"] < costs["before"]["parameters"]


def test_what_lora_costs_a_plain_unet(tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = "unet_plain", "unet_merged", "unet_dynamic"
    options = "--backends", "torch", "--after", "--size", 64, "--runs", 2, "--json", tmp_path / "graphs.json"
    done = run("--model", tiny_checkpoint, "--graphs", *names, *options)
    assert done.returncode == 0, done.stderr
    assert "torch: a merged path costs" in done.stdout and "torch: the dynamic path costs" in done.stdout


def test_speed_is_that_against_the_model_as_it_is_loaded() -> None:
    merged, plain = ("unet_merged", "after"), ("unet_plain", "before")
    times = {(*plain, "torch"): 60.0, (*merged, "torch"): 50.0, (*merged, "openvino"): 40.0}
    text = graphs.report(times)
    assert "40.0 (1.25x)" in text, "all there is of this graph is PyTorch's simplified one"
    assert "openvino: a merged path is 1.50 x as fast as the plain UNet in PyTorch eager" in text
    assert "40.0 (1.40x)" in graphs.report({**times, ("unet_merged", "before", "torch"): 56.0})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--graphs", "unet_mergd"), "unknown graph 'unet_mergd' (did you mean 'unet_merged'?)"),
        (("--backends", "openvin"), "unknown backend 'openvin'"),
        (("--size", 100), "--size 100: the model takes multiples of 64"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
