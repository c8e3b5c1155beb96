"""Wrong arguments of the export command: one line that says what and what instead, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dod.config import load_preset
from dod.errors import DODError
from dod.model.dod import sized_model
from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.console import run_command
from export.build_engines import TARGET_NAMES, choose_targets, main, parser
from export.engines import targets
from export.errors import ExportError
from export.preflight import check_room
from tests.conftest import NO_GPU, SIZES


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> str:
    """The one line on stderr of a command that must refuse its arguments before it writes anything."""
    code = run_command(main, [*arguments, "--out", str(out)], also=(ExportError, DODError))
    errors = capsys.readouterr().err
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert not out.exists() and not out.with_name(f"{out.name}.partial").exists()
    return errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--targets", "onnxruntime", "tensorrt_rxt"], "unknown target 'tensorrt_rxt' (did you mean 'tensorrt_rtx'?)"),
        (["--targets"], "--targets: expected at least one argument"),
        (["--precision", "fp61"], "unknown precision 'fp61' (did you mean 'fp16'?)"),
        (["--min", "wide"], "--min: invalid int value: 'wide'"),
        (["--batch", "1"], "--batch: expected 2 arguments"),
        (["--tar", "onnxruntime"], "unrecognized arguments: --tar"),
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--refit", "--targets", "onnxruntime"], "--refit is for engines: name one of the targets tensorrt_rtx, tens"),
        (["--refit", "--engine-conditions", "rain"], "--refit builds one merged UNet for all conditions: leave"),
    ],
)
def test_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, tmp_path / "x", "no checkpoint", *arguments)


@pytest.mark.skipif(not NO_GPU, reason="a GPU is here")
def test_weights_are_exchanged_only_in_what_a_gpu_built(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    errors = refused(capsys, tmp_path / "x", "no checkpoint", "--refit")
    assert "--refit needs the GPU that the engines are for while they are built: no NVIDIA" in errors


@pytest.mark.parametrize(
    ("capabilities", "words"),
    [
        (["8.6", "12.9"], ["unknown compute capability '12.9'", "did you mean '12."]),
        (["7.5"], ["7.5 does not build with fp16", "export fp32"]),
    ],
)
def test_compute_capabilities(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, capabilities: list[str], words: list[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    asked = ["--targets", "tensorrt_rtx", "--compute-capabilities", *capabilities]
    errors = refused(capsys, tmp_path / "x", "no checkpoint", *asked)
    assert all(word in errors for word in words), errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conditions", "haze", "rian"], ["unknown condition 'rian' (did you mean 'rain'?)"]),
        (["--max", "250"], ["--max 250", "multiples of 16 px", "240 and 256"]),
        (["--min", "8"], ["--min 8", "16 and 32"]),
        (["--opt", "-64"], ["--opt -64", "16 and 32"]),
        (
            ["--min", "256", "--opt", "128"],
            ["found 256, 128, 1024; in order they are --min 128 --opt 256 --max 1024"],
        ),
        (["--opt", "512", "--max", "256"], ["--min <= --opt <= --max, found 256, 512, 256"]),
        (["--batch", "0", "4"], ["--batch takes positive numbers, found 0"]),
        (["--batch", "4", "1"], ["--batch 4 1: the usual batch comes first, then the largest"]),
        (["--fp32-modules", "unet.nothing"], ["no module 'unet.nothing'", "unet.unet.conv_out"]),
    ],
)
def test_what_does_not_fit_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, arguments: list[str], words: list[str]
) -> None:
    errors = refused(capsys, tmp_path / "x", str(tiny_checkpoint), "--targets", "onnxruntime", *arguments)
    assert all(word in errors for word in words), errors


@pytest.mark.parametrize("out", [".", "sub/.."])
def test_a_folder_that_cannot_be_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run_command(
        main, [str(tiny_checkpoint), "--targets", "onnxruntime", "--out", out], also=(ExportError, DODError)
    )
    assert code == 2 and f"--out {out}: name the folder itself, such as {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("conditional", ["none", "unet+encoder"])
def test_an_ablation_without_a_path(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    conditional: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("load_model", "sized_model"):
        monkeypatch.setattr(f"export.pipeline.{name}", lambda *_: pytest.fail("nothing is loaded before"))
    ablation = tmp_path / "ablation"
    shutil.copytree(tiny_checkpoint, ablation)
    metadata = json.loads((ablation / "dod.json").read_text())
    (ablation / "dod.json").write_text(json.dumps({**metadata, "conditional": conditional}))
    errors = refused(capsys, tmp_path / "x", str(ablation), "--targets", "onnxruntime")
    assert f"lora.conditional = {conditional} " in errors and "lora.conditional = unet\n" in errors


def test_int8_alone_is_refused_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, photographs: Path
) -> None:
    arguments = [str(tiny_checkpoint), "--out", str(tmp_path / "x"), "--targets", "onnxruntime", *SIZES]
    arguments += ["--precision", "int8", "--samples", str(photographs)]
    code = run_command(main, arguments, also=(ExportError, DODError))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "no bundle is written" in error and "leave int8 out of --precision" in error
    assert "fp16 is written" not in error and list(tmp_path.iterdir()) == []


def test_another_models_bundle_is_not_replaced_unasked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline.load_model", lambda *_: pytest.fail("nothing is loaded before"))
    (tmp_path / MANIFEST).write_text(json.dumps({"schema": 2, "name": "mini", "conditions": {"rain": "rain"}}))
    arguments = [str(tiny_checkpoint), "--out", str(tmp_path), "--targets", "onnxruntime"]
    code = run_command(main, arguments, also=(ExportError, DODError))
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and all(word in error for word in ("mini", "rain", "tiny", "--force"))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "absent")
    assert missing in refused(capsys, tmp_path / "x", missing, "--targets", "onnxruntime")
    (tmp_path / "empty").mkdir()
    errors = refused(capsys, tmp_path / "x", str(tmp_path / "empty"), "--targets", "onnxruntime")
    assert "neither a checkpoint (dod.json) nor a preset (preset.yaml)" in errors


@pytest.mark.parametrize("exists", [True, False])
def test_samples_without_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, exists: bool
) -> None:
    folder = tmp_path / "samples"
    if exists:
        folder.mkdir()
        (folder / "notes.txt").write_text("no image")
    arguments = [str(tiny_checkpoint), "--targets", "onnxruntime", "--samples", str(folder)]
    assert f"no photographs in {folder}: give a folder of images" in refused(capsys, tmp_path / "x", *arguments)


def test_samples_of_one_name(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("street.png", "street.jpg"):
        (tmp_path / name).touch()
    arguments = [str(tiny_checkpoint), "--targets", "onnxruntime", "--samples", str(tmp_path)]
    message = refused(capsys, tmp_path / "x", *arguments)
    assert "two samples are called street, street.jpg and street.png: rename one" in message


def test_a_disk_without_room(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("export.preflight.shutil.disk_usage", lambda _: usage)
    errors = refused(capsys, tmp_path / "x", str(tiny_checkpoint), "--targets", "onnxruntime")
    assert "no room on the disk: the build needs about" in errors and str(tmp_path / "x") in errors


def test_what_is_there_already_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an interrupted build goes on, and a bundle gets one more condition, on a disk that they have filled."""
    out, model = tmp_path / "bundle", sized_model(load_preset("tiny"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr("export.preflight.shutil.disk_usage", lambda _: type("Usage", (), {"free": parameters}))
    with pytest.raises(OSError, match="no room on the disk"):
        check_room(out, model, 1, 0)
    held = tmp_path / "bundle.partial" / "files" / "onnx" / "unet.safetensors"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(3 * parameters))
    check_room(out, model, 1, 0)
    out.mkdir()
    (out / "unet.safetensors").hardlink_to(held)
    with pytest.raises(OSError, match="no room on the disk"):
        check_room(out, model, 2, 0)


def test_a_machine_without_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline.load_model", lambda *_: pytest.fail("nothing is loaded before"))
    memory = type("Memory", (), {"available": 900_000_000})
    monkeypatch.setattr("export.preflight.psutil.virtual_memory", lambda: memory)
    errors = refused(capsys, tmp_path / "x", str(tiny_checkpoint), "--targets", "onnxruntime")
    assert "not enough memory: the build needs about 1.5 GB, 0.9 GB are free" in errors


def test_a_target_that_cannot_be_built_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    errors = refused(capsys, tmp_path / "x", "--targets", "onnxruntime", "tensorrt_rtx")
    assert "target tensorrt_rtx cannot be built here: tensorrt_rtx is not installed: pip install" in errors
    chosen, left_out = choose_targets(None)
    assert chosen == ("onnxruntime",) and left_out.keys() == {"openvino", "tensorrt_rtx", "tensorrt"}
    errors = refused(capsys, tmp_path / "x", "--targets", "openvino")
    assert "target openvino cannot be built here: openvino is not installed: pip install -e '.[openvino]'" in errors


def test_openvino_needs_the_graphs_in_fp32(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    errors = refused(capsys, tmp_path / "x", "--targets", "onnxruntime", "openvino", "--precision", "fp16")
    assert "target openvino cannot be built here: it runs the graphs in fp32: add fp32 to --precision" in errors
    chosen, left_out = choose_targets(None, ["fp16"])
    assert "openvino" not in chosen and "openvino" in left_out


def test_a_target_that_needs_a_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: True)
    monkeypatch.setattr(targets, "gpu_unavailable_reason", lambda: "no NVIDIA driver")
    errors = refused(capsys, tmp_path / "x", "--targets", "tensorrt")
    assert "target tensorrt cannot be built here: no NVIDIA driver" in errors
    assert choose_targets(None) == (("onnxruntime", "openvino", "tensorrt_rtx"), {"tensorrt": "no NVIDIA driver"})


def test_targets_that_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: True)
    monkeypatch.setattr(targets, "gpu_unavailable_reason", lambda: None)
    assert choose_targets(None) == (TARGET_NAMES, {})
    assert choose_targets(["tensorrt_rtx", "onnxruntime", "tensorrt_rtx"]) == (("tensorrt_rtx", "onnxruntime"), {})


def test_defaults() -> None:
    arguments = parser().parse_args([])
    assert arguments.checkpoint == "mini" and arguments.out == Path("build/mini") and not arguments.explain
    assert (arguments.min, arguments.opt, arguments.max, arguments.batch) == (256, 512, 1024, (1, 4))
