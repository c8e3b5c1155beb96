"""`benchmarks/latency.py` on a bundle of the `tiny` preset: the table, the JSON, and what a missed budget does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.comparison import Row, with_speed_ups
from benchmarks.latency import SWITCHES, main, switched
from benchmarks.reference import TorchModel, load_reference
from benchmarks.runners import Job, Runner
from dod.checkpoint import load_model, save_checkpoint
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BundleError
from dod_runtime.restorer import Restorer
from export.parity.compare import psnr_db
from export.preflight import hash_model
from tests.benchmarks.commands import refused, run, run_here
from tests.runtime.toy_bundle import write_toy_bundle

QUICK = ("--size", 64, "--runs", 2, "--warmup", 0.01, "--threads", 1)


@pytest.fixture(scope="module")
def condition(tiny_bundle: Path) -> str:
    return next(iter(Bundle.open(tiny_bundle).manifest.conditions))


@pytest.fixture(scope="module")
def other_checkpoint(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model on the same base."""
    model = load_reference(Bundle.open(tiny_bundle))
    folder = tmp_path_factory.mktemp("other")
    with torch.no_grad():
        for name, parameter in model.adaptation_parameters().items():
            if name.endswith("lora_B.weight"):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_checkpoint(model, folder)
    return folder


def test_table_and_json(tiny_bundle: Path, condition: str, tmp_path: Path) -> None:
    arguments = ("--conditions", "auto", condition, "--precision", "fp32", "fp16", "--batch", 2)
    done = run("latency", "--bundle", tiny_bundle, *QUICK, *arguments, "--markdown", "l.md", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first round" in done.stderr and "not run: tensorrt fp32: " in done.stdout
    found = json.loads((tmp_path / "build" / "latency.json").read_text())
    rows = found["rows"]
    models = [("pytorch_cpu", "fp32"), ("openvino", "fp32"), ("onnxruntime_cpu", "fp32"), ("onnxruntime_cpu", "fp16")]
    assert [(row["path"], row["backend"], row["precision"]) for row in rows] == [
        (path, *model) for path in ("auto", condition) for model in models
    ]
    for row in rows:
        check_row(row)
    assert found["threads"] == 1 and found["machine"]["libraries"]["onnxruntime"]
    assert found["machine"]["command"].endswith("--markdown l.md") and "tensorrt_rtx fp16" in found["not_run"]
    assert found["not_run"]["openvino fp16"] == "this bundle has fp32 for it, not fp16"
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


def test_no_speed_up_where_parity_failed(
    tiny_bundle: Path, condition: str, other_checkpoint: Path, tmp_path: Path
) -> None:
    """A bundle that does not compute what the checkpoint does that it says it was built from."""
    bundle, manifest = shutil.copytree(tiny_bundle, tmp_path / "bundle"), tmp_path / "bundle" / "bundle.json"
    stated = json.loads(manifest.read_text())
    stated["model"]["checkpoint_sha256"] = hash_model(load_model(other_checkpoint))
    manifest.write_text(json.dumps(stated))
    arguments = ("--conditions", condition, "--checkpoint", other_checkpoint, "--json", tmp_path / "figures.json")
    done = run("latency", "--bundle", bundle, *QUICK, *arguments, where=tmp_path)
    assert done.returncode == 1, done.stderr
    reference, *failed = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert reference["speed_up"] == 1 and [row["backend"] for row in failed] == ["openvino", "onnxruntime_cpu"]
    assert all(row["speed_up"] is None and row["passed"] is False for row in failed)
    for backend, threshold in (("openvino", "SNR 70 dB"), ("onnxruntime_cpu", "SNR 80 dB")):
        line = next(line for line in done.stdout.splitlines() if f"{backend} fp32" in line)
        assert line.endswith(f"FAILED: {threshold}") and "x" not in line.split("fp32")[1]


def test_the_reference_is_what_the_bundle_was_built_from(tiny_bundle: Path, other_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="was built from the checkpoint .*--checkpoint"):
        load_reference(Bundle.open(tiny_bundle), str(other_checkpoint))


def test_the_reference_is_the_model(tiny_bundle: Path, condition: str) -> None:
    """Component by component, PyTorch gives what the whole module gives; merged, what the branches give."""
    bundle = Bundle.open(tiny_bundle)
    model = load_reference(bundle)
    reference, fp16 = TorchModel(model, "cpu", "fp32"), TorchModel(model, "cpu", "fp16")
    for each in (reference, fp16):
        each.merge([condition])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with Restorer(bundle, "onnxruntime_cpu") as restorer, torch.no_grad():
        found = {path: Runner(reference, restorer, Job(pixels, 1, path)).restore() for path in ("auto", condition)}
        image = torch.from_numpy(restorer.prepare(pixels).image[None])
        native = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
        assert np.abs(found["auto"] - model(image, model.modulation(native)[1]).numpy()).max() < 1e-5
        modulation = model.mfm.network(model.prototypes[condition][None])
        assert np.abs(found[condition] - model(image, modulation).numpy()).max() < 1e-4
        for path, truth in found.items():
            assert 40 < psnr_db(truth, Runner(fp16, restorer, Job(pixels, 1, path)).restore()) < 90


def test_switching_is_timed_and_compared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with Restorer(tiny_bundle, "onnxruntime_cpu", threads=1) as restorer:
        conditions = restorer.conditions[1:]
        found = switched(restorer, conditions, pixels)
        assert len(found.seconds) == SWITCHES * len(conditions) and min(found.seconds) >= 0 and found.same
        restore, calls = restorer.restore, iter(range(100))
        monkeypatch.setattr(restorer, "restore", lambda *given: np.asarray(restore(*given)) // (1 + (next(calls) > 2)))
        assert not switched(restorer, conditions, pixels).same


def test_speed_ups_go_by_the_fastest_sound_pytorch() -> None:
    ms = {"image": {"p50": 100.0}}
    torch_row = Row(64, 1, "auto", "pytorch_cuda", "fp32", "cuda", "", 2, 1.0, ms, 99, 99, None, None)
    fp16 = replace(torch_row, precision="fp16", ms={"image": {"p50": 40.0}}, passed=True)
    fast = replace(torch_row, backend="tensorrt", ms={"image": {"p50": 20.0}}, passed=True)
    alone = replace(fast, backend="onnxruntime_cpu", device="cpu")
    assert [row.speed_up for row in with_speed_ups([torch_row, fp16, fast, alone])] == [0.4, 1, 2, None]
    broken = replace(fp16, passed=False)
    assert [row.speed_up for row in with_speed_ups([torch_row, broken, fast])] == [1, None, 5]


def test_bad_input(tiny_bundle: Path, tmp_path: Path) -> None:
    figures, text = tmp_path / "new" / "figures.json", tmp_path / "a.txt"
    text.write_text("no image")
    for arguments, words in (
        (("--conditions", "fog"), ("unknown condition 'fog'", "auto")),
        (("--backends", "onnx"), ("unknown backend 'onnx'",)),
        (("--backends", "tensorrt"), ("tensorrt", "onnxruntime_cpu")),
        (("--precision", "int8"), ("unknown precision 'int8'", "fp32")),
        (("--image", text), (f"not an image: {text}",)),
        (("--image", tmp_path / "b.png"), ("no such file: ", "b.png")),
        (("--size", 1_000_000), ("1000000", "--max")),
        (("--size", 0), ("--size must be more than 0",)),
        (("--batch", 99), ("--batch 99", "at most")),
        (("--size", 64, "--checkpoint", tmp_path), ("neither a checkpoint", "nor a preset")),
    ):
        refused(run_here(main, "--bundle", tiny_bundle, "--json", figures, *arguments), *words)
    refused(run("latency", "--bundle", tmp_path / "nowhere", where=tmp_path), "no such bundle", "build_engines.py")
    assert not figures.parent.exists()


def test_a_bundle_of_another_model(tiny_bundle: Path, tmp_path: Path) -> None:
    toy = write_toy_bundle(tmp_path / "toy", precisions=["fp32"])
    refused(run_here(main, "--bundle", toy, "--json", tmp_path / "figures.json", "--size", 64), "toy")
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["model"]["base_sha256"] = "0" * 64
    (copy / "bundle.json").write_text(json.dumps(manifest))
    refused(run("latency", "--bundle", copy, *QUICK, where=tmp_path), "000000000000...", "--checkpoint")
