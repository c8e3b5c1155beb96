"""Interrupted training commands (full disk, SIGTERM, kill), and their continuation."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from dod.checkpoint import load_model
from dod.errors import CheckpointError, run_command
from dod.training import parts, pretrain, stages
from tests.dod.small_training import arguments, command, contents


def test_base_and_checkpoint_change_together_or_not_at_all(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after the decoder was written. The same command continues once there is room."""
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    assert command(stages.main, "1", folder, "--dmd-weight", "0") == 0
    before = {part: contents(folder / part) for part in ("base", "dod")}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(stages, "save_checkpoint", full)
        assert command(stages.main, "2", folder, "--decoder", "trained") == 2
    assert "No space left" in capsys.readouterr().err
    assert {part: contents(folder / part) for part in before} == before
    assert command(stages.main, "2", folder, "--decoder", "trained") == 0
    assert contents(folder / "base") != before["base"] and load_model(folder).prototypes == {}


def test_a_run_killed_between_base_and_checkpoint_continues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    assert command(stages.main, "1", folder, "--dmd-weight", "0") == 0
    words = arguments(folder, "2", "--steps", "2", "--decoder", "trained")
    dying = (
        "import os; from dod.training import stages; stages.save_checkpoint = lambda *_, **__: os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", f"{dying}; stages.main({words!r})"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    weights = folder / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    written = weights.read_bytes()
    with pytest.raises(CheckpointError, match="base"):
        load_model(folder)
    capsys.readouterr()
    assert run_command(stages.main, words) == 0
    assert "killed" in capsys.readouterr().out
    assert load_model(folder).prototypes == {}
    assert weights.read_bytes() == written, "the second result differs from the first"


def test_a_part_that_does_not_fit_leaves_the_former_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(pretrain.main, "vae", folder) == 0
    before = contents(folder / "base")
    vae = parts.read_part(AutoencoderKL, folder / "base" / "vae")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="diffusion_pytorch_model.safetensors"):
            parts.publish(vae, folder / "base" / "vae", [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(folder / "base") == before


def test_sigterm_saves_and_the_same_command_continues(folder: Path) -> None:
    """The signal goes to the whole process group, including workers, as service managers send it."""
    words = arguments(folder, "ddpm", "--steps", "100", "--save-every", "1000", "--workers", "1")
    weights, state = folder / "ddpm" / "diffusion_pytorch_model.safetensors", folder / "state"
    command = [sys.executable, "-m", "dod.training.pretrain", *words]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (state / "tensorboard").is_dir() and running.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(running.pid, signal.SIGTERM)
    _, printed = running.communicate()
    assert running.returncode == 143 and not weights.exists(), printed
    assert (state / "ddpm.state.safetensors").is_file()
    assert run_command(pretrain.main, words) == 0
    resumed = load_file(weights)
    shutil.rmtree(state)
    assert run_command(pretrain.main, [*words, "--overwrite"]) == 0
    whole = load_file(weights)
    for name in whole:  # another process may use other kernels
        torch.testing.assert_close(whole[name], resumed[name], rtol=1e-2, atol=1e-3)
