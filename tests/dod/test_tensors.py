"""Safetensors files: permissions, failed writes, and fingerprints."""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dod.checkpoint import save_checkpoint
from dod.errors import CheckpointError
from dod.model.base import new_vae
from dod.model.dod import DOD
from dod.tensors import fingerprint, read_safetensors, write_safetensors
from dod.training import parts
from dod.training.loop import train
from tests.dod.small_model import smaller
from tests.dod.small_training import QUICK, Pairs
from tests.dod.training.test_loop import Denoise, toy


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): mode(path) for path in folder.rglob("*") if path.is_file()}


def test_every_file_that_training_writes_honours_the_umask(tmp_path: Path, umask: int) -> None:
    """A checkpoint, a training state, a published part, and a single file such as the prompt embedding."""
    model = DOD.from_preset(smaller())
    save_checkpoint(model, tmp_path / "dod")
    save_checkpoint(model, tmp_path / "dod")  # over the first, which it replaces
    train("toy", Denoise(toy()), Pairs(), QUICK, tmp_path / "state")
    parts.publish(new_vae(model.preset.base.vae), tmp_path / "vae", [])
    write_safetensors({"prompt": torch.zeros(2)}, tmp_path / "prompt.safetensors")
    found = modes(tmp_path)
    written = {"dod/dod.safetensors", "dod/dod.json", "state/toy.state.safetensors", "prompt.safetensors"}
    assert written | {"vae/diffusion_pytorch_model.safetensors", "vae/config.json"} <= set(found)
    assert found == dict.fromkeys(found, 0o666 & ~umask)


def test_a_file_that_is_written_over_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    file.chmod(0o640)
    write_safetensors({"a": torch.zeros(2)}, file)
    assert mode(file) == 0o640


def test_a_failed_write_leaves_no_new_file(tmp_path: Path) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"a\.safetensors: .*written"):
            write_safetensors({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_depends_on_names_shapes_and_values_but_not_on_storage() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    expected = fingerprint(tensors)
    assert fingerprint({"b": torch.zeros(1).half(), "a": torch.ones(3, 2).T.double()}) == expected
    assert fingerprint({**tensors, "b": torch.ones(1)}) != expected
    assert fingerprint({**tensors, "a": torch.ones(3, 2)}) != expected
    assert fingerprint({"a": tensors["a"], "c": tensors["b"]}) != expected


def test_written_tensors_are_read_back(tmp_path: Path) -> None:
    write_safetensors({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "a.safetensors")["a"], torch.arange(3.0))
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        read_safetensors(tmp_path / "nowhere.safetensors")
