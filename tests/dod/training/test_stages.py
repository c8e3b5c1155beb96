"""The two stages, and the training commands as a user runs them, from nothing to a checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dod.checkpoint import METADATA, load_model
from dod.config import load_preset
from dod.errors import ConfigError, run_command
from dod.model.base import load_base
from dod.model.dod import DOD
from dod.training import init, loop, pretrain, stages
from dod_runtime.errors import UsageError
from tests.dod.data.small_tree import make_tree
from tests.dod.small_model import smaller
from tests.dod.small_training import QUICK, Pairs, arguments, command, contents


@pytest.mark.parametrize("stage", ["1", "1, at the latent", "1, at the latent, relative", "1, both", "2"])
def test_a_stage_changes_its_own_parameters_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 10)
    torch.manual_seed(0)
    model = DOD.from_preset(smaller())
    own = model.detail_parameters() if stage == "2" else model.adaptation_parameters()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    schedule = replace(QUICK, steps=30, learning_rate=3e-3, weight_decay=0.0)
    if stage == "2":
        log = stages.stage_2(model, Pairs(), schedule, tmp_path)
    else:
        latent = "latent" in stage
        weights = {"rec_weight": 1.0 - latent, "latent_weight": float(latent), "dmd_weight": float("both" in stage)}
        log = stages.stage_1(model, Pairs(), schedule, tmp_path, **weights, relative="relative" in stage)
    ids = {id(p) for p in own.values()}
    mine = {name for name, p in model.named_parameters() if id(p) in ids}
    assert {name for name, p in model.named_parameters() if not torch.equal(before[name], p)} == mine
    assert {name for name, p in model.named_parameters() if p.requires_grad} == mine
    assert log[-1]["loss"] < log[0]["loss"]


def test_stage_2_without_detail_modules_has_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiny.*detail modules"):
        stages.stage_2(DOD.from_preset(smaller(detail__enabled=False)), Pairs(), QUICK, tmp_path)


def test_the_commands_from_nothing_to_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(pretrain.main, "unet", folder) == 2
    assert "dod-train vae" in capsys.readouterr().err
    assert command(pretrain.main, "vae", folder) == 0
    weights = folder / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    hidden = weights.rename(folder / "hidden")
    torch.save(load_file(hidden), weights.with_suffix(".bin"))
    assert command(pretrain.main, "unet", folder) == 2
    assert "AutoencoderKL" in capsys.readouterr().err, "a pickle was read"
    hidden.rename(weights)
    weights.with_suffix(".bin").unlink()
    for part in ("unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    parts = load_base(load_preset(folder))
    assert parts.vae.config["scaling_factor"] not in (0, 0.18215)
    assert json.loads((folder / "base" / "scheduler" / "scheduler_config.json").read_text())["beta_end"] == 0.012
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt") or path.name.endswith(".partial")]

    assert command(stages.main, "2", folder) == 2
    assert "dod-train stage1" in capsys.readouterr().err
    assert command(stages.main, "1", folder, "--rec-weight", "0", "--dmd-weight", "0") == 2
    assert "--vgg" in capsys.readouterr().err
    drawing = ("--crop-candidates", "3", "--oversample", "blur", "noise")
    first = (*drawing, "--clean-fraction", "0.5", "--gradient-checkpointing")
    for stage, more in (("1", first), ("2", ()), ("calibrate", drawing)):
        assert command(stages.main, stage, folder, *more) == 0
    printed = capsys.readouterr()
    assert printed.out.count("dod-train calibrate") == 2, "the hint of both stages"
    assert "no --vgg" in printed.out and "images/s, peak memory" in printed.out
    assert "stage-1: 100%" in printed.err and "images/s]" in printed.err
    for stage, terms in (("stage-1", {"rec", "dmd", "diff"}), ("stage-2", {"rec", "ssim"})):
        events = EventAccumulator(str(folder / "state" / "tensorboard" / stage), {"images": 0}).Reload()
        assert {"loss", "learning_rate", "images_per_second", *terms} <= set(events.Tags()["scalars"])
        assert events.Tags()["images"] == ["0", "1", "2", "3"], "sample images"
    model = load_model(folder)
    assert model.base_sha256 == parts.sha256
    assert tuple(model.prototypes) == model.preset.conditions
    c = torch.stack(list(model.prototypes.values()))
    assert model.statistics is not None and torch.allclose(model.statistics[0], c.mean(0), atol=1e-5)
    metadata = json.loads((folder / "dod" / METADATA).read_text())
    assert [run["stage"] for run in metadata["training"]] == [1, 2]
    assert metadata["training"][0]["schedule"]["steps"] == 2
    drawn = [
        (run["samples"]["crop_candidates"], run["samples"]["oversample"], run["samples"]["clean_fraction"])
        for run in metadata["training"]
    ]
    assert drawn == [(3, ["blur", "noise"], 0.5), (2, [], 0.1)]

    # The same command again changes nothing. Another run starts from the first one's weights and ignores its state.
    before = contents(folder / "dod")
    assert command(stages.main, "2", folder, "--workers", "1") == 0
    assert "another --seed" in capsys.readouterr().out and contents(folder / "dod") == before
    assert command(stages.main, "2", folder, "--seed", "1") == 0
    printed = capsys.readouterr().out
    assert "seed = 0" in printed and "calibrate" not in printed
    assert [run["stage"] for run in json.loads((folder / "dod" / METADATA).read_text())["training"]] == [1, 2, 2]
    assert command(pretrain.main, "ddpm", folder, "--continue") == 0
    before = contents(folder / "ddpm")
    assert command(pretrain.main, "ddpm", folder, "--continue") == 0 and contents(folder / "ddpm") == before
    runs = json.loads((folder / "ddpm" / "training.json").read_text())
    assert [run["schedule"]["steps"] for run in runs] == [2, 2]
    assert str(folder) not in (folder / "ddpm" / "config.json").read_text(), "a path of the machine is published"

    # With another base, the checkpoint belongs to the old one and is replaced on request only.
    assert command(pretrain.main, "ddpm", folder, "--seed", "1", "--overwrite") == 0
    assert command(stages.main, "2", folder) == 2
    assert "base" in capsys.readouterr().err
    assert command(stages.main, "1", folder) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert command(stages.main, "1", folder, "--overwrite") == 0
    assert "clean_fraction = 0.5, this run has 0.1" in capsys.readouterr().out
    assert [run["stage"] for run in json.loads((folder / "dod" / METADATA).read_text())["training"]] == [1]


def test_stage_2_can_train_the_decoder_of_the_users_own_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("vae", "unet"):
        assert command(pretrain.main, part, folder) == 0
    assert command(pretrain.main, "ddpm", folder, "--degraded-fraction", "0.8") == 0
    assert command(stages.main, "1", folder, "--dmd-weight", "0", "--rec-weight", "0", "--latent-weight", "1") == 0
    file = folder / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    before, checkpoint = load_file(file), load_model(folder)
    assert command(stages.main, "2", folder, "--decoder", "trained", "--relative", "--learning-rate", "1e-2") == 0
    after, model = load_file(file), load_model(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
    assert model.base_sha256 != checkpoint.base_sha256
    runs = json.loads((folder / "base" / "vae" / "training.json").read_text())
    assert [run.get("stage") for run in runs] == [None, 2] and runs[1]["options"]["relative"]
    adapted = checkpoint.adaptation_parameters()
    assert all(torch.equal(adapted[name], value) for name, value in model.adaptation_parameters().items())
    new_decoder = ("--decoder", "new", "--learning-rate", "1e-6", "--overwrite")
    assert command(stages.main, "2", folder, *new_decoder) == 0
    bias = load_file(file)["decoder.conv_norm_out.bias"].float()
    new: Any = init.new_autoencoder(checkpoint.preset.base.vae)
    assert torch.allclose(bias, new.decoder.conv_norm_out.bias, atol=0.01), "it does not start from new weights"
    assert command(stages.main, "calibrate", folder) == 0
    assert load_model(folder).prototypes
    capsys.readouterr()

    # With another DDPM, only stage 1 may continue from a checkpoint of other frozen weights, and says so.
    other = ("--degraded-fraction", "0.8", "--continue", "--seed", "1", "--state", str(folder / "b"))
    assert command(pretrain.main, "ddpm", folder, *other) == 0
    assert command(stages.main, "2", folder, "--state", str(folder / "second")) == 2
    assert "base" in capsys.readouterr().err
    assert command(stages.main, "1", folder, "--continue", "--dmd-weight", "0", "--state", str(folder / "third")) == 0
    assert "prototypes were discarded" in capsys.readouterr().out
    after = load_model(folder)
    assert after.base_sha256 not in (model.base_sha256, checkpoint.base_sha256)
    assert after.prototypes == {} and after.statistics is None, "they belong to features of the other DDPM"


def two_processes(words: list[str]) -> str:
    """Return the output of two processes that train a stage together."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "dod.training.stages"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(folder: Path) -> None:
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    printed = two_processes(arguments(folder, "1", "--steps", "2"))
    assert printed.count("stage 1: loss") == 1, "more than one process prints"
    start, trained = folder / "start", folder / "dod" / "dod.safetensors"
    shutil.copytree(folder / "dod", start)
    words = arguments(folder, "2", "--steps", "3", "--learning-rate", "1e-2")
    assert run_command(stages.main, words) == 0
    alone = load_file(trained)
    shutil.rmtree(folder / "dod")
    shutil.rmtree(folder / "state")
    shutil.copytree(start, folder / "dod")
    words[words.index("--batch-size") + 1] = "1"
    assert two_processes(words).count("stage 2: loss") == 1
    together, first = load_file(trained), load_file(start / "dod.safetensors")
    moved = {name for name in first if (first[name] - alone[name]).abs().max() > 5e-3}
    assert moved
    assert all(torch.allclose(alone[name].float(), together[name].float(), atol=2e-3) for name in moved)


def test_the_stages_take_a_published_tree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    tree = make_tree(folder / "tree")
    (tree / "Train" / "Derain" / "rainy" / "rain-1.png").write_bytes(b"cut short")
    words = [
        "--data",
        str(tree),
        "--checkpoint",
        str(folder),
        "--crop",
        "32",
        "--steps",
        "2",
    ]  # the former --steps of calibrate
    words += ["--setting", "rain-haze-noise"]
    run = ("--state", str(folder / "state"), "--batch-size", "2", "--workers", "0")
    assert run_command(stages.main, ["1", *words, *run]) == 2
    assert "rain-1.png" in (printed := capsys.readouterr().err) and "--skip-broken" in printed
    for stage, more in (("1", run), ("2", run), ("calibrate", ())):
        assert run_command(stages.main, [stage, *words, *more, "--skip-broken"]) == 0
    assert "1 unreadable" in capsys.readouterr().out
    assert tuple(load_model(folder).prototypes) == ("haze", "rain", "noise")
    for refused, why in (
        (["1", *words, "--photographs", str(folder)], "--photographs"),
        (["2", *words, "--continue"], "--continue"),
        (["calibrate", *words, "--batch-size", "2"], "--batch-size"),
    ):
        with pytest.raises(UsageError, match=why):
            stages.main(refused)


@pytest.mark.parametrize(
    ("main", "name", "preset", "more", "message"),
    [
        (pretrain.main, "vae", "tiny", (), "tiny.* base.source"),
        (pretrain.main, "ddpm", "tiny", (), "tiny.* ddpm.source"),
        (stages.main, "1", "tiny", (), "tiny.* no checkpoint"),
        (pretrain.main, "vae", "mini", ("--crop", "100"), "--crop 100: .* 8 "),
        (pretrain.main, "unet", "mini", ("--crop", "96"), "--crop 96: .* 64 "),
        (pretrain.main, "ddpm", "mini", ("--batch-size", "0"), "--batch-size 0: .* 1"),
        (stages.main, "1", "mini", ("--crop", "100"), "--crop 100: .* 64"),
        (stages.main, "2", "mini", ("--crop", "128", "--tile", "192"), "--tile-size 192: .* 64"),
        (stages.main, "1", "mni", (), "'mini'"),
        (pretrain.main, "vae", "mini", ("--lists", "lists"), "--lists .* --data"),
    ],
)
def test_impossible_training_is_an_error_of_one_line(
    main: Any,
    name: str,
    preset: str,
    more: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(main, [name, "--photographs", "nowhere", "--checkpoint", preset, *more]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and re.search(message, printed) and printed.count("\n") == 1
    assert not list(tmp_path.iterdir()), "files were written before the error"


def test_a_decoder_that_cannot_be_rewritten_is_an_error_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "preset.yaml").write_text("name: mine\nbase: {source: somebody/base}\ncheckpoint: dod\n")
    words = ["2", "--photographs", "nowhere", "--checkpoint", str(tmp_path), "--decoder", "trained"]
    assert run_command(stages.main, words) == 2
    assert "base.source = somebody/base" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(stages.main, ["1", "--photographs", "nowhere", "--checkpoint", "tiny", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "ConfigError" in printed and "error: " in printed
