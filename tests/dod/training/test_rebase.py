"""Base and checkpoint change together, on a full disk and after a kill."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dod.checkpoint import load_model
from dod.errors import CheckpointError, run_command
from dod.training import pretrain, stages
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


@pytest.mark.slow
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
