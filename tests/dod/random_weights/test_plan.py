"""Checks before anything is written, and the written presets."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dod.config import load_preset
from dod.errors import CheckpointError
from dod.random_weights.layouts import ADM_FILE
from dod.random_weights.plan import Variant, check_plan, required_bytes, variants, write_preset
from tests.dod.small_model import tiny


def test_a_full_disk_is_an_error_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_234_567_890))
    with pytest.raises(CheckpointError, match=r"3\.80 GB .*1\.23 GB"):
        check_plan(load_preset("sd21"), tmp_path / "new" / "folder", ["sd"], 4)
    check_plan(load_preset("sd21"), tmp_path / "new" / "folder", ["ddpm"], 4)


def test_required_bytes_at_full_size() -> None:
    preset = load_preset("sd21")
    assert required_bytes(preset, ["sd"], 4) == 4 * (865_910_724 + 83_653_863)
    assert required_bytes(preset, ["ddpm", "adm"], 2) == 2 * (113_673_219 + 552_814_086)


def test_the_checkpoint_needs_its_base(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"base.*add sd to --parts"):
        check_plan(tiny(), tmp_path, ["ddpm", "dod"], 4)
    check_plan(tiny(), tmp_path, ["ddpm"], 4)


def test_presets_of_both_ddpms(tmp_path: Path) -> None:
    places = variants(["sd", "ddpm", "adm", "dod"], tmp_path)
    assert places == [Variant("ddpm", tmp_path), Variant("adm", tmp_path / "adm")]
    (tmp_path / "adm").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "adm" / ADM_FILE).touch()
    for variant in places:
        write_preset("sd21", variant, checkpoint=True)
    plain, adm = load_preset(tmp_path), load_preset(tmp_path / "adm")
    assert (plain.name, plain.ddpm.layout, plain.checkpoint) == ("sd21", "diffusers", "dod")
    assert (adm.ddpm.layout, adm.checkpoint) == ("adm", "dod")
    assert Path(adm.locate(adm.base.source)).samefile(tmp_path / "base")
    assert Path(adm.locate(adm.ddpm.source)).is_file()
