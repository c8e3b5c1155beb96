"""Hashes that identify the inputs of a build: the model's tensors and settings, and the calibration images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dod.model.dod import DOD

__all__ = ["hash_images", "hash_model", "hash_tensors", "settings_of"]


def hash_model(model: DOD) -> str:
    """Return the SHA-256 of a model's trained tensors and prototypes, in float32.

    Args:
        model: the model as it was loaded, before any simplification.
    """
    prototypes = {f"prototype.{name}": value for name, value in model.prototypes.items()}
    return hash_tensors(model.trained_tensors() | prototypes)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and values, in float32.

    Args:
        tensors: CPU tensors by name; their order does not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().data)
    return digest.hexdigest()


def hash_images(paths: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each image file, by file name.

    Args:
        paths: the image files.
    """
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def settings_of(model: DOD) -> dict[str, Any]:
    """Return the settings that decide a model's graphs and are stored in no tensor, for JSON.

    Args:
        model: its preset and the configuration of its Stable Diffusion base are read.
    """
    preset, unet = model.preset, model.unet.unet.config
    return {
        **{name: asdict(getattr(preset, name)) for name in ("mfm", "lora", "step", "detail")},
        "postprocess": None if preset.postprocess is None else asdict(preset.postprocess),
        "unet": {name: value for name, value in unet.items() if not name.startswith("_")},
        "scaling_factor": model.encoder.scaling_factor,
    }
