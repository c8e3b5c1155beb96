"""Folders that training commands write to: no weights are replaced without --overwrite."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dod.checkpoint import METADATA, WEIGHTS, load_model, read_metadata
from dod.config import load_preset, preset_file, shipped_presets
from dod.errors import ConfigError, run_command
from dod.extras import postprocess, prune
from dod.training import output, pretrain, stages
from dod.training.output import check_output, open_output, state_folder, training_preset
from tests.dod.small_training import contents

ROOT = Path(__file__).parents[3]


def asked(checkpoint: Path | str, out: Path | None = None, overwrite: bool = False) -> Namespace:
    return Namespace(
        checkpoint=str(checkpoint), setting=None, out=out, overwrite=overwrite, state=None, continue_training=False
    )


@pytest.fixture
def trained(folder: Path) -> Path:
    """A preset with every part that a command writes. The weights are text: a refusal reads none of them."""
    preset = yaml.safe_load((folder / "preset.yaml").read_text())
    preset["detail"] |= {"dense": 2}
    preset["postprocess"] = {"window": 15}
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    for part in ("base/vae", "base/unet", "ddpm"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(part)
    (folder / "dod").mkdir()
    (folder / "dod" / WEIGHTS).write_text("ten hours")
    training = [{"stage": "postprocess"}]
    (folder / "dod" / METADATA).write_text(json.dumps({"format": 1, "dense": 3, "training": training}))
    return folder


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (pretrain.main, ["vae"]),
        (pretrain.main, ["unet"]),
        (pretrain.main, ["ddpm"]),
        (stages.main, ["1"]),
        (stages.main, ["2", "--decoder", "new"]),
        (postprocess.main, []),
        (prune.main, []),
    ],
    ids=["vae", "unet", "ddpm", "stage 1", "a new decoder", "postprocess", "prune"],
)
def test_weights_are_not_replaced_without_overwrite(
    main: Any, words: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes before anything is read: these weights are unreadable, and there are no photographs."""
    before = contents(trained)
    argv = [*words, "--photographs", str(trained / "nowhere"), "--checkpoint", str(trained), "--crop", "64"]
    assert run_command(main, argv) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "--overwrite" in printed and "--out" in printed
    assert ("--continue" in printed) == (main in (pretrain.main, stages.main) and "2" not in words)
    assert contents(trained) == before
    assert run_command(main, [*argv, "--overwrite"]) == 2
    assert "--overwrite" not in capsys.readouterr().err, "with --overwrite the weights are read"
    assert contents(trained) == before


def test_a_shipped_preset_is_trained_in_a_copy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first stage starts a copy, whose weights later commands keep."""
    shipped = folder / "presets" / "small"
    shipped.mkdir(parents=True)
    preset = yaml.safe_load((folder / "preset.yaml").read_text())
    preset["base"]["source"] = preset["ddpm"]["source"] = "random"
    (shipped / "preset.yaml").write_text(text := "# as it came\n" + yaml.safe_dump(preset))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(output, "PRESETS", folder / "presets")
    words = [
        "--photographs",
        "photographs",
        "--checkpoint",
        str(shipped),
        "--batch-size",
        "1",
        "--crop",
        "32",
        "--steps",
        "1",
    ]
    words += ["--workers", "0"]
    one = ["1", *words, "--dmd-weight", "0"]
    assert run_command(stages.main, one) == 0
    copy = Path("build/presets/small")
    shutil.copytree(copy / "dod", shipped / "dod")  # the preset is now shipped with weights that the copy still has
    before = contents(shipped)
    assert (copy / "preset.yaml").read_text() == text and sorted(contents(Path("build/training/small")))
    assert run_command(stages.main, [*one, "--seed", "1"]) == 0, "the copy still has the shipped weights"
    once = contents(copy)
    assert once["dod/dod.safetensors"] != before["dod/dod.safetensors"]
    capsys.readouterr()
    assert run_command(stages.main, [*one, "--seed", "2"]) == 2
    assert str(copy / "dod") in (printed := capsys.readouterr().err) and "--overwrite" in printed
    assert contents(copy) == once
    assert run_command(stages.main, ["2", *words]) == 0
    assert str(copy) in capsys.readouterr().out
    assert [run["stage"] for run in read_metadata(copy / "dod")["training"]] == [1, 2]
    assert load_model(copy).preset.name == "tiny" and contents(shipped) == before


def test_mini_as_it_is_shipped_survives_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of stage 1 without --checkpoint and --out does not change the shipped weights."""
    monkeypatch.chdir(tmp_path)
    mini = load_preset("mini").folder
    before = contents(mini)
    samples = str(ROOT / "docs" / "samples" / "clean")
    words = ["1", "--photographs", samples, "--steps", "1", "--batch-size", "1", "--crop", "64", "--workers", "0"]
    assert run_command(stages.main, [*words, "--dmd-weight", "0"]) == 0
    assert contents(mini) == before
    copy = contents(tmp_path / "build" / "presets" / "mini")
    assert copy["dod/dod.safetensors"] != before["dod/dod.safetensors"]
    assert all(copy[name] == value for name, value in before.items() if not name.startswith("dod/"))


def test_out_trains_a_copy_of_the_users_own_preset(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights elsewhere are named by path, not copied, and so never written."""
    mine, out = trained / "mine", trained / "new" / "out"
    mine.mkdir()
    (trained / "dod").rename(mine / "dod")
    preset = yaml.safe_load((trained / "preset.yaml").read_text())
    preset["base"]["source"], preset["ddpm"]["source"] = "../base", str(trained / "ddpm")
    (mine / "preset.yaml").write_text(yaml.safe_dump(preset))
    before = contents(mine)
    words = asked(mine, out)
    assert training_preset(words).folder == mine, "the copy does not exist yet"
    made = open_output(words, training_preset(words), {"checkpoint": False})
    assert made.folder == out and contents(out / "dod") == contents(mine / "dod")
    assert (made.base.source, made.ddpm.source) == (str(trained / "base"), str(trained / "ddpm"))
    assert sorted(path.name for path in out.iterdir()) == ["dod", "preset.yaml"]
    assert [path.name for path in out.parent.iterdir()] == ["out"], "a temporary folder is left"
    assert str(out) in capsys.readouterr().out
    assert training_preset(words) == made
    for part, key in (("vae", "base"), ("unet", "base"), ("ddpm", "ddpm")):
        with pytest.raises(ConfigError, match=rf"{key}\.source = .* outside"):
            check_output(asked(mine, out, overwrite=True), made, {part: True})
    (out / "dod" / WEIGHTS).write_text("an hour more")
    check_output(words, made, {"checkpoint": True})
    with pytest.raises(ConfigError, match="--overwrite"):
        open_output(words, made, {"checkpoint": False})
    assert contents(mine) == before


def test_a_copy_holds_the_base_and_the_ddpm_beside_the_preset(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (trained / "base" / "notes.txt").write_text("not the base's")
    for path in trained.rglob("config.json"):
        path.chmod(0o444)
        path.parent.chmod(0o555)
    try:
        made = open_output(words := asked(trained, out), training_preset(asked(trained, out)), {"vae": False})
    finally:
        for path in trained.rglob("config.json"):
            path.parent.chmod(0o755)
    parts = {"base/vae/config.json", "base/unet/config.json", "ddpm/config.json", "dod/dod.json"}
    assert set(contents(out)) == {*parts, "dod/dod.safetensors", "preset.yaml"}
    assert all(contents(out)[name] == contents(trained)[name] for name in contents(out))
    (out / "ddpm" / "config.json").write_text("a copy is writable even if the original is not")
    check_output(words, made, {"vae": False})
    (out / "base" / "vae" / "config.json").write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        check_output(words, made, {"vae": False})


def test_a_copy_that_does_not_fit_leaves_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.shutil, "copyfile", full)
    out = trained / "new" / "out"
    with pytest.raises(OSError, match="No space"):
        open_output(asked(trained, out), training_preset(asked(trained, out)), {})
    assert not list(out.parent.iterdir())


def test_out_is_a_preset_of_its_own(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"photographs .*preset\.yaml"):
        training_preset(asked(trained, trained / "photographs"))
    with pytest.raises(ConfigError, match="tiny, not sd21"):
        training_preset(asked("sd21", trained))
    for name in shipped_presets():
        with pytest.raises(ConfigError, match="shipped presets"):
            training_preset(asked(trained, preset_file(name).parent))
    assert training_preset(asked(trained, trained)).folder == trained, "in place"


def test_the_state_of_a_run_has_a_folder_for_each_preset(trained: Path) -> None:
    (trained / "other.yaml").write_text((trained / "preset.yaml").read_text())
    found = [
        state_folder(asked("mini")),
        state_folder(asked("sd21")),
        state_folder(asked(trained)),
        state_folder(asked(trained / "other.yaml")),
        state_folder(asked(trained, trained / "copy")),
    ]
    assert [str(path) for path in found] == [
        f"build/training/{name}" for name in ("mini", "sd21", trained.name, "other", "copy")
    ]
    assert state_folder(Namespace(**{**vars(asked("mini")), "state": Path("mine")})) == Path("mine")
