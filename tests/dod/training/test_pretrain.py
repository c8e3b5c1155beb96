"""Training of the priors is interrupted by SIGTERM and continues."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dod.errors import run_command
from dod.training import pretrain
from tests.dod.small_training import arguments


@pytest.mark.slow
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
