"""Trained parts of a base (autoencoder, UNet, DDPM) on disk: reading, replacing without loss, records of their runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from ..errors import CheckpointError
from ..model.base import Model, load_part
from ..tensors import write_safetensors
from .processes import is_main_process

__all__ = ["RECORD", "backup_of", "publish", "read_part", "read_record", "replace_folder", "restored_on_error"]

RECORD = "training.json"
"""File in a part's folder that lists the runs that made the part."""


def read_part(kind: type[Model], folder: Path) -> Model:
    """Read a part in diffusers' layout.

    Args:
        kind: class of the model.
        folder: folder of the part.

    Returns:
        The model.

    Raises:
        CheckpointError: the folder is not there, or is not such a model.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no {folder.name} at {folder}: run `dod-train {folder.name}` first")
    return load_part(kind, str(folder))


def read_record(folder: Path) -> list[dict[str, Any]]:
    """Read the records of the runs that made a part.

    Args:
        folder: folder of the part.

    Returns:
        The records; empty for a part that was not trained by this project.
    """
    return json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else []


def publish(model: ModelMixin, folder: Path, runs: list[dict[str, Any]]) -> None:
    """Write a part in fp16. The folder is replaced only when its successor is complete.

    Args:
        model: the part; it becomes fp16.
        folder: folder of the part.
        runs: records of the runs that made it.

    Raises:
        CheckpointError: there is no room for it.
    """
    if not is_main_process():
        return
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.half().save_config(temporary)
        config = json.loads((temporary / "config.json").read_text())
        config.pop("_name_or_path", None)  # a path of the machine that trained it
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_safetensors(tensors, temporary / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
        (temporary / RECORD).write_text(json.dumps(runs) + "\n")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(successor: Path, folder: Path) -> None:
    """Replace a folder in two renames, so that it is never incomplete.

    Args:
        successor: folder that takes the place of `folder`.
        folder: folder that is deleted, if it exists.
    """
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        folder.rename(before)
    successor.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def backup_of(folder: Path) -> Path:
    """Return the path of the copy that `restored_on_error` keeps.

    Args:
        folder: the folder.

    Returns:
        A path beside it.
    """
    return folder.with_name(f".{folder.name}.kept")


@contextmanager
def restored_on_error(folder: Path) -> Iterator[None]:
    """Restore a folder if the block fails, so that it changes together with what the block writes after it.

    If the process is killed, the copy remains at `backup_of(folder)`.

    Args:
        folder: the folder.

    Yields:
        Nothing.
    """
    backup = backup_of(folder)
    shutil.rmtree(backup, ignore_errors=True)
    shutil.copytree(folder, backup)
    try:
        yield
    except BaseException:
        replace_folder(backup, folder)
        raise
    shutil.rmtree(backup, ignore_errors=True)
