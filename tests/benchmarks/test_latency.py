"""`benchmarks/latency.py` on the tiny bundle: table, JSON, and results below their parity threshold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency import main
from dod.checkpoint import load_model
from export.fingerprints import hash_model
from tests.benchmarks.commands import refused, run, run_here
from tests.runtime.toy_bundle import write_toy_bundle

QUICK = ("--size", 64, "--runs", 2, "--warmup", 0.01, "--num-threads", 1)


def test_table_and_json(tiny_bundle: Path, condition: str, tmp_path: Path) -> None:
    arguments = ("--conditions", "auto", condition, "--precision", "fp32", "fp16", "--batch-size", 2)
    done = run("latency", "--bundle", tiny_bundle, *QUICK, *arguments, "--markdown", "l.md", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first round" in done.stderr and "not run: tensorrt fp32: " in done.stdout
    found = json.loads((tmp_path / "build" / "latency.json").read_text())
    rows = found["results"]
    models = [("pytorch_cpu", "fp32"), ("openvino", "fp32"), ("onnxruntime_cpu", "fp32"), ("onnxruntime_cpu", "fp16")]
    assert [(row["path"], row["backend"], row["precision"]) for row in rows] == [
        (path, *model) for path in ("auto", condition) for model in models
    ]
    for row in rows:
        check_row(row)
    assert found["num_threads"] == 1 and found["machine"]["libraries"]["onnxruntime"]
    assert found["machine"]["command"].endswith("--markdown l.md") and "tensorrt_rtx fp16" in found["not_run"]
    assert "fp16" in found["not_run"]["openvino fp16"]
    lines = done.stdout.splitlines()
    assert sum(line.startswith("64 x2") for line in lines) == len(rows)
    assert (tmp_path / "l.md").read_text().count("| 64 x2 |") == len(rows)


def check_row(row: dict[str, Any]) -> None:
    parts = {"encoder", "unet", "decoder", "image"} | ({"mfm"} if row["path"] == "auto" else set())
    assert set(row["ms"]) == parts and row["runs"] == 2
    for ms in row["ms"].values():
        assert 0 < ms["min"] <= ms["p50"] <= ms["p90"] <= ms["p99"]
    assert sum(row["ms"][part]["min"] for part in parts - {"image"}) < row["ms"]["image"]["p99"]
    if row["backend"] == "pytorch_cpu":
        assert row["passed"] is None and row["speed_up"] == 1 and row["snr_db"] is None
    else:
        assert row["passed"] is True and row["speed_up"] > 0
        assert row["snr_db"] >= 80 if row["precision"] == "fp32" else row["psnr_db"] >= 45


@pytest.mark.slow
def test_no_speed_up_where_parity_failed(
    tiny_bundle: Path, condition: str, other_checkpoint: Path, tmp_path: Path
) -> None:
    """The bundle names a checkpoint that computes something else."""
    bundle, manifest = shutil.copytree(tiny_bundle, tmp_path / "bundle"), tmp_path / "bundle" / "bundle.json"
    stated = json.loads(manifest.read_text())
    stated["model"]["checkpoint_sha256"] = hash_model(load_model(other_checkpoint))
    manifest.write_text(json.dumps(stated))
    arguments = ("--conditions", condition, "--checkpoint", other_checkpoint, "--json", tmp_path / "results.json")
    done = run("latency", "--bundle", bundle, *QUICK, *arguments, where=tmp_path)
    assert done.returncode == 1, done.stderr
    reference, *failed = json.loads((tmp_path / "results.json").read_text())["results"]
    assert reference["speed_up"] == 1 and [row["backend"] for row in failed] == ["openvino", "onnxruntime_cpu"]
    assert all(row["speed_up"] is None and row["passed"] is False for row in failed)
    for backend, threshold in (("openvino", "SNR 70 dB"), ("onnxruntime_cpu", "SNR 80 dB")):
        line = next(line for line in done.stdout.splitlines() if f"{backend} fp32" in line)
        assert line.endswith(f"FAILED: {threshold}") and "x" not in line.split("fp32")[1]


def test_bad_input(tiny_bundle: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "new" / "results.json", tmp_path / "a.txt"
    text.write_text("no image")
    for arguments, words in (
        (("--conditions", "fog"), ("'fog'", "auto")),
        (("--backends", "onnx"), ("'onnx'", "onnxruntime")),
        (("--backends", "tensorrt"), ("tensorrt", "onnxruntime_cpu")),
        (("--precision", "int8"), ("'int8'", "fp32")),
        (("--image", text), (str(text),)),
        (("--image", tmp_path / "b.png"), ("b.png",)),
        (("--size", 1_000_000), ("1000000",)),
        (("--size", 0), ("--size", "at least 1")),
        (("--batch", 99), ("--batch-size 99", "at most")),
        (("--size", 64, "--checkpoint", tmp_path), (str(tmp_path),)),
    ):
        refused(run_here(main, "--bundle", tiny_bundle, "--json", out, *arguments), *words)
    refused(run("latency", "--bundle", tmp_path / "nowhere", where=tmp_path), "nowhere", "dod-export build")
    assert not out.parent.exists()


@pytest.mark.slow
def test_a_bundle_of_another_model(tiny_bundle: Path, tmp_path: Path) -> None:
    toy = write_toy_bundle(tmp_path / "toy", precisions=["fp32"])
    refused(run_here(main, "--bundle", toy, "--json", tmp_path / "results.json", "--size", 64), "toy")
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["model"]["base_sha256"] = "0" * 64
    (copy / "bundle.json").write_text(json.dumps(manifest))
    refused(run("latency", "--bundle", copy, *QUICK, where=tmp_path), "000000000000...", "--checkpoint")
