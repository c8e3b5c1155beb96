"""Files of named tensors, read and written with the errors of this package, and the fingerprint of tensors."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError

__all__ = ["fingerprint", "read_safetensors", "read_state", "write_safetensors"]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Args:
        path: the file.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published state dict.

    Args:
        path: `.safetensors` file, or `.pt` file, which is read with weights_only.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: the file is missing, malformed, or holds something other than a state dict.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a plain state dict, which is all that is read: {first}") from None


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file with the permissions that `open` would give it.

    safetensors itself writes a temporary file of mode 0600 and renames it, whatever the umask is.

    Args:
        tensors: contiguous tensors by name.
        path: the file, which is replaced if it exists.
        metadata: text to store in the header of the file.

    Raises:
        CheckpointError: writing failed, for example because the disk is full (safetensors raises no OSError).
        OSError: the file cannot be created.
    """
    was_there = path.exists()
    path.open("ab").close()  # a new file gets its mode from the umask, an existing one keeps its own
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        if not was_there:
            path.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: could not be written: {error}") from None
    path.chmod(mode)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes and float32 values of tensors, in the order of the names.

    Args:
        tensors: tensors by name. Those on the meta device contribute name and shape.

    Example:
        >>> fingerprint({"a": torch.zeros(1)})[:8]
        '0489f09f'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.device.type != "meta":
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()
