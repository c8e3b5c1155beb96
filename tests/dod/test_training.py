from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from dod.base import load_base
from dod.checkpoint import METADATA, load_model
from dod.clora import adapted_layers, factors
from dod.config import load_preset
from dod.errors import CheckpointError, ConfigError, TrainingError, run_command
from dod.model import DOD
from dod.training import loop, pretrain, stages
from dod.training.loop import batches, train
from dod.training.objectives import Adaptation
from dod.training.state import Log, Schedule
from tests.dod.data.small_tree import make_tree
from tests.dod.small_model import SMALLER, image, normal, smaller

QUICK = Schedule(steps=4, batch=2, crop=16, learning_rate=1e-2, warmup=1, workers=0, save_every=2)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """(noisy, clean) pictures; a run that asks for sample `stop` is interrupted."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == self.stop:
            raise KeyboardInterrupt
        clean = image(1, 16, 16, seed=i)[0]
        return (clean + 0.2 * normal(3, 16, 16, seed=i)).clamp(-1, 1), clean


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


class Denoise(loop.Objective):
    """A toy objective; it draws noise from the step's generator, as the real ones may. At step `nan` it fails."""

    def __init__(self, model: nn.Module, nan: int | None = None) -> None:
        super().__init__()
        self.model, self.nan, self.steps = model, nan, 0

    def forward(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        noise = 0.01 * torch.randn(batch[0].shape, generator=generator)
        error = (self.model(batch[0] + noise) - batch[1]).square().mean()
        self.steps += 1
        return {"error": error * (float("nan") if self.steps - 1 == self.nan else 1)}


def run(model: nn.Module, folder: Path, schedule: Schedule = QUICK, stop: int | None = None, **more: Any) -> Log:
    return train("toy", Denoise(model), Pairs(stop), schedule, folder, **more)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_few_steps_reduce_the_loss(tmp_path: Path) -> None:
    log = run(toy(), tmp_path, replace(QUICK, steps=100, batch=4))
    assert [entry["step"] for entry in log] == [50, 100]
    assert log[1]["loss"] < 0.7 * log[0]["loss"]


def test_10_steps_and_10_resumed_are_20_steps_to_the_bit(tmp_path: Path) -> None:
    whole, halves, schedule = toy(), toy(), replace(QUICK, steps=20, save_every=5)
    run(whole, tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        run(halves, tmp_path / "halves", schedule, stop=10 * 2)
    resumed = toy()
    log = run(resumed, tmp_path / "halves", schedule)
    assert log[-1]["step"] == 20
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(resumed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values(whole), values(halves), strict=True))
    assert sorted(path.name for path in (tmp_path / "halves").iterdir()) == ["tensorboard", "toy.state.safetensors"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    model, again = toy(), toy()
    log = run(model, tmp_path)
    assert run(again, tmp_path, stop=0) == log
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(again), strict=True))


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 6), ("batch", 3), ("seed", 1), ("warmup", 2), ("clip", 0.5), ("precision", "bf16")]
)
def test_a_changed_schedule_is_refused_and_its_key_named(tmp_path: Path, key: str, value: Any) -> None:
    run(toy(), tmp_path)
    message = rf"toy.state.safetensors was written with {key} = {getattr(QUICK, key)}, this run has {value}"
    with pytest.raises(TrainingError, match=message):
        run(toy(), tmp_path, replace(QUICK, **{key: value}))


def test_state_of_other_frozen_weights_or_parameters_is_refused(tmp_path: Path) -> None:
    run(toy(), tmp_path, identity="one base")
    with pytest.raises(TrainingError, match="on other frozen weights"):
        run(toy(), tmp_path, identity="another base")
    other = toy()
    with torch.no_grad():
        other[0].bias.add_(1)
    with pytest.raises(TrainingError, match="started from other weights"):
        run(other, tmp_path, identity="one base")
    with pytest.raises(TrainingError, match="holds other parameters"):
        run(nn.Conv2d(3, 3, 1), tmp_path, identity="one base")
    (tmp_path / "toy.state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"toy.state.safetensors: not a readable safetensors file"):
        run(toy(), tmp_path, identity="one base")


def test_nan_stops_with_the_step_and_a_lower_rate_goes_on(tmp_path: Path) -> None:
    model = toy()
    message = (
        r"toy: step 3 gave loss nan, gradient norm nan on sample 6, sample 7; run again with a lower --learning-rate: "
        rf"it goes on from the last state in {tmp_path}"
    )
    with pytest.raises(TrainingError, match=message):
        train("toy", Denoise(model, nan=3), Pairs(), QUICK, tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())
    assert run(toy(), tmp_path, replace(QUICK, learning_rate=1e-3))[-1]["step"] == 4


def test_accumulated_steps_are_those_of_a_larger_batch(tmp_path: Path) -> None:
    class Plain(Denoise):
        def forward(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {"error": (self.model(batch[0]) - batch[1]).square().mean()}

    large, small = toy(), toy()
    train("toy", Plain(large), Pairs(), QUICK, tmp_path / "large")
    train("toy", Plain(small), Pairs(), replace(QUICK, batch=1, accumulation=2), tmp_path / "small")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(large), values(small), strict=True))


def test_processes_share_the_batches_of_a_step() -> None:
    schedule = replace(QUICK, batch=2, accumulation=2, steps=3)
    whole = [batch[0] for batch in batches(Pairs(), replace(schedule, batch=4), 1)]
    shares = [[batch[0] for batch in batches(Pairs(), schedule, 1, process, 2)] for process in range(2)]
    assert len(whole) == len(shares[0]) == 4
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*shares, strict=True), strict=True))


def test_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.51) and 0.02 <= rates[-1] < 0.03


def test_batches_start_where_the_run_stopped() -> None:
    first = [batch[0] for batch in batches(Pairs(), QUICK, 0)]
    assert len(first) == 4 and first[0].shape == (2, 3, 16, 16)
    resumed = [batch[0] for batch in batches(Pairs(), QUICK, 3)]
    assert len(resumed) == 1 and torch.equal(resumed[0], first[3])


@pytest.mark.parametrize("stage", ["1", "1, at the latent", "1, both", "2"])
def test_a_stage_moves_its_own_parameters_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
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
        log = stages.stage_1(model, Pairs(), schedule, tmp_path, **weights)
    ids = {id(p) for p in own.values()}
    mine = {name for name, p in model.named_parameters() if id(p) in ids}
    assert {name for name, p in model.named_parameters() if not torch.equal(before[name], p)} == mine
    assert {name for name, p in model.named_parameters() if p.requires_grad} == mine
    assert log[-1]["loss"] < log[0]["loss"]


def test_distribution_matching_trains_two_networks_apart() -> None:
    model = DOD.from_preset(smaller())
    objective = Adaptation(model, rec=0.0, dmd=1.0)
    (_, adaptation), (_, fake) = objective.groups()
    batch = [torch.stack(each) for each in zip(*(Pairs()[i] for i in range(2)), strict=True)]
    for moved in (factors(layer)[1] for _, layer in adapted_layers(objective.fake)):
        moved.data.normal_(std=0.1)  # B starts at zero: the fake denoiser would be the real one and nothing would flow
    terms = objective(batch, torch.Generator().manual_seed(0))
    assert terms.keys() == {"dmd", "diff"}
    terms["dmd"].backward(retain_graph=True)
    assert all(p.grad is None for p in fake.values()) and any(p.grad is not None for p in adaptation.values())
    held = {name: p.grad.clone() for name, p in adaptation.items() if p.grad is not None}
    terms["diff"].backward()
    assert all(p.grad is not None for p in fake.values())
    assert all(torch.equal(adaptation[name].grad, gradient) for name, gradient in held.items())
    shared = {p.data_ptr() for p in model.unet.unet.parameters()}
    assert {p.data_ptr() for p in objective.real.parameters()} <= shared, "the base is not held twice"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A preset of two levels whose weights are to be trained, and two photographs."""
    preset = yaml.safe_load((load_preset("tiny").folder / "preset.yaml").read_text())
    preset["base"] |= {
        "source": "base",
        "vae": {**preset["base"]["vae"], "block_out_channels": SMALLER["base.vae.block_out_channels"]},
        "unet": {
            **preset["base"]["unet"],
            "block_out_channels": SMALLER["base.unet.block_out_channels"],
            "attention_heads": SMALLER["base.unet.attention_heads"],
        },
    }
    preset["ddpm"]["source"], preset["checkpoint"] = "ddpm", "dod"
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    (tmp_path / "photographs").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / name)
    return tmp_path


def command(main: Any, name: str, folder: Path, *more: str) -> int:
    argv = [
        name,
        "--photographs",
        str(folder / "photographs"),
        "--preset",
        str(folder),
        "--state",
        str(folder / "state"),
    ]
    options = {"--steps": "2", "--batch": "2", "--crop": "32", "--workers": "0"}
    return run_command(main, [*argv, *(word for pair in options.items() for word in pair), *more])


def test_the_commands_from_nothing_to_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(pretrain.main, "unet", folder) == 2
    assert "run `python -m dod.training.pretrain vae` first" in capsys.readouterr().err
    assert command(pretrain.main, "vae", folder) == 0
    weights = folder / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    hidden = weights.rename(folder / "hidden")
    torch.save(load_file(hidden), weights.with_suffix(".bin"))
    assert command(pretrain.main, "unet", folder) == 2
    assert "no AutoencoderKL in diffusers layout" in capsys.readouterr().err, "a pickle is never read"
    hidden.rename(weights)
    weights.with_suffix(".bin").unlink()
    for part in ("unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    parts = load_base(load_preset(folder))
    assert parts.vae.config["scaling_factor"] not in (0, 0.18215)
    assert json.loads((folder / "base" / "scheduler" / "scheduler_config.json").read_text())["beta_end"] == 0.012
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt") or path.name.endswith(".partial")]

    assert command(stages.main, "2", folder) == 2
    assert "run stage 1 first" in capsys.readouterr().err
    for stage in ("1", "2", "calibrate"):
        assert command(stages.main, stage, folder) == 0
    model = load_model(folder)
    assert model.base_sha256 == parts.sha256
    assert tuple(model.prototypes) == model.preset.conditions
    c = torch.stack(list(model.prototypes.values()))
    assert model.statistics is not None and torch.allclose(model.statistics[0], c.mean(0), atol=1e-5)
    metadata = json.loads((folder / "dod" / METADATA).read_text())
    assert [run["stage"] for run in metadata["training"]] == [1, 2]
    assert metadata["training"][0]["schedule"]["steps"] == 2

    # A second run of a stage starts from the first's weights, so its state is no state of the first.
    assert command(stages.main, "2", folder) == 2
    assert "started from other weights" in capsys.readouterr().err
    assert command(stages.main, "2", folder, "--state", str(folder / "second")) == 0
    assert command(pretrain.main, "ddpm", folder, "--continue", "--state", str(folder / "second")) == 0
    runs = json.loads((folder / "ddpm" / "training.json").read_text())
    assert [run["schedule"]["steps"] for run in runs] == [2, 2]
    assert str(folder) not in (folder / "ddpm" / "config.json").read_text(), "no path of this machine is published"

    # The base is trained anew: the checkpoint and the state of stage 1 belong to the old one.
    (folder / "state" / "ddpm.state.safetensors").unlink()
    assert command(pretrain.main, "ddpm", folder, "--seed", "1") == 0
    assert command(stages.main, "2", folder) == 2
    assert "trained on another base model" in capsys.readouterr().err
    assert command(stages.main, "1", folder) == 2
    assert "on other frozen weights" in capsys.readouterr().err


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    paths = ["--photographs", str(folder / "photographs"), "--preset", str(folder), "--state", str(folder / "state")]
    return [name, *paths, "--batch", "2", "--crop", "32", "--workers", "0", *more]


def test_sigterm_saves_and_the_same_command_goes_on_to_the_bit(folder: Path) -> None:
    words = arguments(folder, "ddpm", "--steps", "100", "--save-every", "1000")
    weights, state = folder / "ddpm" / "diffusion_pytorch_model.safetensors", folder / "state"
    command = [sys.executable, "-m", "dod.training.pretrain", *words]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (state / "tensorboard").is_dir() and running.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    _, printed = running.communicate()
    assert running.returncode == 143 and not weights.exists(), printed
    assert (state / "ddpm.state.safetensors").is_file()
    assert run_command(pretrain.main, words) == 0
    resumed = load_file(weights)
    shutil.rmtree(state)
    assert run_command(pretrain.main, words) == 0
    whole = load_file(weights)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_train_as_one_with_twice_the_batch(folder: Path) -> None:
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    assert command(stages.main, "1", folder, "--dmd-weight", "0") == 0
    start, trained = folder / "start", folder / "dod" / "dod.safetensors"
    shutil.copytree(folder / "dod", start)
    words = arguments(folder, "2", "--steps", "3", "--learning-rate", "1e-2")
    assert run_command(stages.main, words) == 0
    alone = load_file(trained)
    shutil.rmtree(folder / "dod")
    shutil.rmtree(folder / "state")
    shutil.copytree(start, folder / "dod")
    words[words.index("--batch") + 1] = "1"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "dod.training.stages"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("stage 2: loss") == 1, "one process speaks"
    together, first = load_file(trained), load_file(start / "dod.safetensors")
    moved = {name for name in first if (first[name] - alone[name]).abs().max() > 5e-3}
    assert moved
    assert all(torch.allclose(alone[name].float(), together[name].float(), atol=2e-3) for name in moved)


def test_the_stages_take_a_published_tree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    tree = make_tree(folder / "tree")
    (tree / "Train" / "Derain" / "rainy" / "rain-1.png").write_bytes(b"cut short")
    words = ["--data", str(tree), "--preset", str(folder), "--state", str(folder / "state"), "--crop", "32"]
    words += ["--steps", "2", "--batch", "2", "--workers", "0", "--setting", "rain-haze-noise"]
    assert run_command(stages.main, ["1", *words]) == 2
    assert "1 of " in (printed := capsys.readouterr().err) and "rain-1.png" in printed and "--skip-broken" in printed
    for stage in ("1", "2", "calibrate"):
        assert run_command(stages.main, [stage, *words, "--skip-broken"]) == 0
    assert "1 unreadable pictures are left out" in capsys.readouterr().out
    assert tuple(load_model(folder).prototypes) == ("haze", "rain", "noise")
    with pytest.raises(SystemExit):
        run_command(stages.main, ["1", *words, "--photographs", str(folder)])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "name", "preset", "more", "message"),
    [
        (pretrain.main, "vae", "tiny", (), "preset tiny has a random base: set base.source to the folder to write"),
        (pretrain.main, "ddpm", "tiny", (), "preset tiny has a random ddpm: set ddpm.source"),
        (stages.main, "1", "tiny", (), "preset tiny names no checkpoint"),
        (stages.main, "1", "mini", ("--crop", "100"), "--crop 100: the model takes multiples of 64"),
        (stages.main, "1", "mni", (), "did you mean 'mini'"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(
    main: Any, name: str, preset: str, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [name, "--photographs", "nowhere", "--preset", preset, *more]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ConfigError):
        run_command(stages.main, ["1", "--photographs", "nowhere", "--preset", "tiny", "--debug"])
