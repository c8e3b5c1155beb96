"""Builds with images that no condition names, and from a checkpoint without prototypes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dod_runtime import Bundle
from tests.conftest import SIZES, build_engines

QUICK = ("--targets", "onnxruntime", "--precision", "fp32", *SIZES)


@pytest.fixture
def unnamed(photographs: Path, tmp_path: Path) -> Path:
    """A folder with one photograph as a camera names it."""
    folder = tmp_path / "camera"
    folder.mkdir()
    shutil.copy(photographs / "noise.png", folder / "IMG_1234.png")
    return folder


@pytest.mark.slow
def test_every_condition_is_checked_and_none_is_dropped_without_force(
    tiny_checkpoint: Path, unnamed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--out", str(out), *QUICK, "--images", str(unnamed)]
    done = build_engines(*arguments, where=tmp_path)
    assert done.returncode == 0, done.stderr
    conditions = set(Bundle.open(out).manifest.conditions)
    rows = [row for file in (out / "report" / "parity").iterdir() for row in json.loads(file.read_text())]
    checked = {row["path"] for row in rows if (row["component"], row["step"]) == ("pipeline", "onnx fp32")}
    assert len(conditions) == 5 and checked == {"auto", *conditions}
    for text in (done.stdout, (out / "report.md").read_text()):
        assert all(condition in text for condition in conditions) and "NOT CHECKED" not in text
    before = (out / "bundle.json").read_bytes()
    refused = build_engines(*arguments, "--conditions", "noise", where=tmp_path)
    assert refused.returncode == 2 and "haze" in refused.stderr and "--force" in refused.stderr
    assert (out / "bundle.json").read_bytes() == before and not out.with_name("bundle.partial").exists()
    forced = build_engines(*arguments, "--conditions", "noise", "--force", where=tmp_path)
    assert forced.returncode == 0 and "haze" in forced.stdout, forced.stderr
    assert set(Bundle.open(out).manifest.conditions) == {"noise"}


@pytest.mark.slow
def test_a_checkpoint_without_prototypes_says_so(unnamed: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = build_engines("--checkpoint", "tiny", "--out", str(out), *QUICK, "--images", str(unnamed), where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(out).manifest.conditions == {}
    for text in (done.stderr, (out / "report.md").read_text()):
        assert "tiny" in text and "prototypes" in text and "calibrate" in text
