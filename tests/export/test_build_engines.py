"""The command `dod-export build`: its options, and arguments that are refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.build_engines import TARGET_NAMES, choose_targets, options_of, parser
from export.engines import targets
from export.options import BuildOptions
from tests.conftest import NO_GPU
from tests.export.refusals import refused_by


def options(*arguments: str) -> BuildOptions:
    return options_of(parser().parse_args([*arguments, "--targets", "onnxruntime"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--targets", "onnxruntime", "tensorrt_rxt"], ["'tensorrt_rxt'", "did you mean 'tensorrt_rtx'"]),
        (["--targets"], ["--targets", "--help"]),
        (["--precision", "fp61"], ["'fp61'", "did you mean 'fp16'"]),
        (["--min-size", "wide"], ["--min-size", "'wide'"]),
        (["--batch", "1"], ["--batch", "--help"]),
        (["--tar", "onnxruntime"], ["--tar", "--help"]),
        (["--workers", "0"], ["--workers", "at least 1", "0"]),
        (["--explain", "--precision", "int8", "--targets", "onnxruntime"], ["--explain", "fp32 or fp16"]),
        (["--refit", "--targets", "onnxruntime"], ["--refit", "tensorrt_rtx"]),
        (["--refit", "--engine-conditions", "rain"], ["--refit", "--engine-conditions"]),
        (["former", "--targets", "onnxruntime"], ["no checkpoint", "former"]),
    ],
)
def test_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    errors = refused_by(capsys, tmp_path / "x", "--checkpoint", "no checkpoint", *arguments)
    assert all(word in errors for word in words), errors


@pytest.mark.skipif(not NO_GPU, reason="a GPU is here")
def test_refit_needs_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    errors = refused_by(capsys, tmp_path / "x", "--refit")
    assert "--refit" in errors and "GPU" in errors


@pytest.mark.parametrize(
    ("capabilities", "words"),
    [(["8.6", "12.9"], ["'12.9'", "did you mean '12."]), (["7.5"], ["7.5", "fp16", "export fp32"])],
)
def test_compute_capabilities(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, capabilities: list[str], words: list[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    asked = ["--targets", "tensorrt_rtx", "--compute-capabilities", *capabilities]
    errors = refused_by(capsys, tmp_path / "x", *asked)
    assert all(word in errors for word in words), errors


def test_a_target_that_cannot_be_built_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    errors = refused_by(capsys, tmp_path / "x", "--targets", "onnxruntime", "tensorrt_rtx")
    assert "tensorrt_rtx" in errors and "pip install" in errors
    chosen, left_out = choose_targets(None)
    assert chosen == ("onnxruntime",) and left_out.keys() == {"openvino", "tensorrt_rtx", "tensorrt"}
    errors = refused_by(capsys, tmp_path / "x", "--targets", "openvino")
    assert "openvino" in errors and "pip install -e '.[openvino]'" in errors


def test_openvino_needs_the_graphs_in_fp32(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    errors = refused_by(capsys, tmp_path / "x", "--targets", "onnxruntime", "openvino", "--precision", "fp16")
    assert "openvino" in errors and "add fp32 to --precision" in errors
    chosen, left_out = choose_targets(None, ["fp16"])
    assert "openvino" not in chosen and "openvino" in left_out


def test_a_target_that_needs_a_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "unavailable_reason", lambda target: "no NVIDIA driver" if target.built_on_gpu else "")
    monkeypatch.setattr("export.build_engines.unavailable_reason", targets.unavailable_reason)
    errors = refused_by(capsys, tmp_path / "x", "--targets", "tensorrt")
    assert "tensorrt" in errors and "no NVIDIA driver" in errors
    assert choose_targets(None)[1]["tensorrt"] == "no NVIDIA driver"


def test_targets_that_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build_engines.unavailable_reason", lambda target: None)
    monkeypatch.setattr("export.build_engines.openvino_unavailable_reason", lambda precisions: None)
    assert choose_targets(None) == (TARGET_NAMES, {})
    assert choose_targets(["tensorrt_rtx", "onnxruntime", "tensorrt_rtx"]) == (("tensorrt_rtx", "onnxruntime"), {})


def test_defaults() -> None:
    found = options()
    assert (found.checkpoint, found.out, found.explain) == ("mini", Path("build/mini"), False)
    assert (found.size, found.batch, found.precisions) == ((256, 512, 1024), (1, 1, 4), ("fp32", "fp16"))


@pytest.mark.parametrize(
    ("former", "current"),
    [
        (["runs/a"], ["--checkpoint", "runs/a"]),
        (["--min", "64", "--opt", "128", "--max", "256"], ["--min-size", "64", "--opt-size", "128", "--max-size=256"]),
        (["--batch", "2", "8"], ["--opt-batch", "2", "--max-batch", "8"]),
        (["--samples", "photographs"], ["--images", "photographs"]),
        (["--fp32-islands", "unet.conv_in"], ["--fp32-modules", "unet.conv_in"]),  # words: ok
    ],
)
def test_former_spellings_still_work(former: list[str], current: list[str]) -> None:
    assert options(*former) == options(*current) != options()
    assert former[0] not in parser().format_help().split()
