"""Checks before a build: what does not fit the model, the disk or the memory is refused before weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dod.config import load_preset
from dod.model.dod import sized_model
from dod_runtime.bundle.bundle import MANIFEST
from export.preflight import check_room, image_paths
from tests.export.refusals import refused_by, run


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded."""
    monkeypatch.setattr("export.pipeline.load_model", lambda *_: pytest.fail("a model is loaded"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-size", "250"], ["--max-size 250", "16 px", "240 and 256"]),
        (["--min-size", "8"], ["--min-size 8", "16 and 32"]),
        (["--opt-size", "-64"], ["--opt-size -64", "16 and 32"]),
        (["--min-size", "256", "--opt-size", "128"], ["--min-size 128 --opt-size 256 --max-size 1024"]),
        (["--opt-size", "512", "--max-size", "256"], ["256, 512, 256"]),
        (["--opt-batch", "0"], ["--opt-batch 0", "at least 1"]),
        (["--opt-batch", "4", "--max-batch", "1"], ["--opt-batch 4 --max-batch 1"]),
    ],
)
def test_sizes(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    arguments: list[str],
    words: list[str],
    unloaded: None,
) -> None:
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", *arguments)
    assert all(word in errors for word in words), errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conditions", "haze", "rian"], ["'rian'", "did you mean 'rain'"]),
        (["--fp32-modules", "unet.nothing"], ["'unet.nothing'", "unet.unet.conv_out"]),
    ],
)
def test_names_that_the_model_does_not_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, arguments: list[str], words: list[str]
) -> None:
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", *arguments)
    assert all(word in errors for word in words), errors


@pytest.mark.parametrize("out", [".", "sub/.."])
def test_a_folder_that_cannot_be_replaced(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    unloaded: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run("--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", "--out", out)
    error = capsys.readouterr().err
    assert code == 2 and f"--out {out}" in error and str(tmp_path) in error
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, unloaded: None
) -> None:
    (tmp_path / "photograph.png").touch()
    assert run("--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", "--out", tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["photograph.png"]


@pytest.mark.parametrize("conditional", ["none", "unet+encoder"])
def test_an_ablation_without_graphs(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    conditional: str,
    monkeypatch: pytest.MonkeyPatch,
    unloaded: None,
) -> None:
    monkeypatch.setattr("export.pipeline.sized_model", lambda *_: pytest.fail("a model is made"))
    ablation = tmp_path / "ablation"
    shutil.copytree(tiny_checkpoint, ablation)
    metadata = json.loads((ablation / "dod.json").read_text())
    (ablation / "dod.json").write_text(json.dumps({**metadata, "conditional": conditional}))
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", ablation, "--targets", "onnxruntime")
    assert f"lora.conditional = {conditional} " in errors and "lora.conditional = unet\n" in errors


def test_a_bundle_of_another_model_is_not_replaced_without_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, unloaded: None
) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"schema": 2, "name": "mini", "conditions": {"rain": "rain"}}))
    code = run("--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", "--out", tmp_path)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and all(word in error for word in ("mini", "rain", "tiny", "--force"))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "absent"
    assert str(missing) in refused_by(capsys, tmp_path / "x", "--checkpoint", missing, "--targets", "onnxruntime")
    (tmp_path / "empty").mkdir()
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", tmp_path / "empty", "--targets", "onnxruntime")
    assert "dod.json" in errors and "preset.yaml" in errors


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, exists: bool
) -> None:
    folder = tmp_path / "images"
    if exists:
        folder.mkdir()
        (folder / "notes.txt").write_text("no image")
    arguments = ["--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", "--images", folder]
    errors = refused_by(capsys, tmp_path / "x", *arguments)
    assert str(folder) in errors and "--images" in errors


def test_images_of_one_name(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("street.png", "street.jpg", "notes.txt"):
        (tmp_path / name).touch()
    arguments = ["--checkpoint", tiny_checkpoint, "--targets", "onnxruntime", "--images", tmp_path]
    errors = refused_by(capsys, tmp_path / "x", *arguments)
    assert "street.jpg and street.png" in errors and "rename" in errors
    (tmp_path / "street.jpg").unlink()
    assert image_paths(tmp_path) == (tmp_path / "street.png",)


def test_a_disk_without_room(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    unloaded: None,
) -> None:
    monkeypatch.setattr("export.preflight.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", tiny_checkpoint, "--targets", "onnxruntime")
    assert "0.0 GB are free" in errors and str(tmp_path / "x") in errors


def test_existing_files_count_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted build resumes, and a bundle gets another condition, on a disk that they have filled."""
    out, model = tmp_path / "bundle", sized_model(load_preset("tiny"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr("export.preflight.shutil.disk_usage", lambda _: type("Usage", (), {"free": parameters}))
    with pytest.raises(OSError, match="no room"):
        check_room(out, model, 1, 0)
    held = tmp_path / "bundle.partial" / "files" / "onnx" / "unet.safetensors"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(3 * parameters))
    check_room(out, model, 1, 0)
    out.mkdir()
    (out / "unet.safetensors").hardlink_to(held)
    with pytest.raises(OSError, match="no room"):
        check_room(out, model, 2, 0)


def test_a_machine_without_memory(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    unloaded: None,
) -> None:
    memory = type("Memory", (), {"available": 900_000_000})
    monkeypatch.setattr("export.preflight.psutil.virtual_memory", lambda: memory)
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", tiny_checkpoint, "--targets", "onnxruntime")
    assert "memory" in errors and "1.5 GB" in errors and "0.9 GB" in errors
