"""Parts on disk are replaced completely or not at all."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from diffusers import AutoencoderKL

from dod.errors import CheckpointError
from dod.training import parts, pretrain
from tests.dod.small_training import command, contents


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
