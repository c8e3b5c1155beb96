"""A build that measures a precision, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.refusals import run

SIZES = ("--min-size", 64, "--opt-size", 128, "--max-size", 256)


@pytest.mark.slow
def test_int8_alone_is_refused_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path, photographs: Path
) -> None:
    arguments = ["--checkpoint", tiny_checkpoint, "--out", tmp_path / "x", "--targets", "onnxruntime", *SIZES]
    code = run(*arguments, "--precision", "int8", "--images", photographs)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "int8" in error and "--precision" in error
    assert list(tmp_path.iterdir()) == []
