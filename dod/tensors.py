"""Named tensors: safetensors files in and out, with errors of this package's family, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. CheckpointError where it is missing or malformed."""
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors. CheckpointError where there is no room (safetensors does not raise an OSError)."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: could not be written: {error}") from None


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and float32 values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.device.type != "meta":
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()
