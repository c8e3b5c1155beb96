"""Checkpoints: folders with `dod.safetensors` (the trained weights) and `dod.json` (the model they belong to)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .config import Preset, load_preset, shipped_presets
from .errors import CheckpointError
from .model.dod import DOD
from .tensors import read_safetensors, write_safetensors

__all__ = [
    "METADATA", "WEIGHTS", "copy_trained", "load_checkpoint", "load_model", "preset_of", "read_metadata",
    "save_checkpoint",
]  # fmt: skip

WEIGHTS, METADATA = "dod.safetensors", "dod.json"
"""Files of a checkpoint."""
FORMAT = 1
"""Newest format of dod.json that this version reads, and the one that it writes."""

SETTINGS = {
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "conditional": "lora.conditional",
    "detail": "detail.enabled",
    "dense": "detail.dense",
    "postprocess": "postprocess",
    "step": "step",
    "crops": "mfm.crops",
    "crop_size": "mfm.crop_size",
}
"""Keys of dod.json that describe the model, and the preset's dotted key for each."""
MAY_DIFFER = "crops", "crop_size"
"""Keys whose value may differ between checkpoint and model: c is a mean over any number of crops."""
UNSTATED = {"postprocess": None, "dense": 3}
"""Values of keys that older checkpoints do not have."""
POSTPROCESS = "gate.", "postprocess."
"""Prefixes of the tensors that `FIT` fits after both stages."""
SUPERSEDED = "sharpening.", "bypass."
"""Prefixes of the tensors of a former post-processing, which has to be fitted again."""
FIT = "dod-train postprocess"
"""Command that fits the post-processing."""


def save_checkpoint(model: DOD, folder: Path, dtype: torch.dtype = torch.float32, **facts: Any) -> None:
    """Write the trained weights, the prototypes and statistics of c, and the identity of the base.

    Both files are complete before they replace those in the folder, so a failed write does not damage a checkpoint.

    Args:
        model: model to save.
        folder: folder of the checkpoint, created if missing.
        dtype: type of the trained weights. Prototypes and statistics are always float32.
        **facts: further JSON values for dod.json, such as `training`.

    Raises:
        CheckpointError: writing the weights failed, for example because the disk is full.
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().to(dtype).contiguous() for name, p in model.trained_tensors().items()}
    tensors |= {f"prototype.{name}": value.float().cpu().contiguous() for name, value in model.prototypes.items()}
    if model.statistics is not None:
        tensors["statistics"] = model.statistics.float().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "preset": model.preset.name,
        **_settings(model),
        "conditions": list(model.prototypes),
        "layers": model.layers,
        **facts,
    }
    with TemporaryDirectory(prefix=".", dir=folder) as temporary:
        write_safetensors(tensors, Path(temporary) / WEIGHTS)
        (Path(temporary) / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        for name in (WEIGHTS, METADATA):
            os.replace(Path(temporary) / name, folder / name)


def load_checkpoint(
    model: DOD, folder: Path, any_base: bool = False, without_postprocess: bool = False
) -> dict[str, Any]:
    """Load the weights of a checkpoint into a model, in place.

    Args:
        model: model with the structure and the base of the checkpoint.
        folder: folder of the checkpoint.
        any_base: accept a checkpoint of another base, to train it further on this one.
        without_postprocess: leave the post-processing of the model as it is, for a command that fits it.

    Returns:
        The metadata of the checkpoint, see `read_metadata`.

    Raises:
        CheckpointError: the checkpoint is missing or malformed, or does not match the model.
    """
    metadata = read_metadata(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    _check_channels(model, folder, tensors)
    if not without_postprocess and any(name.startswith(SUPERSEDED) for name in tensors):
        raise CheckpointError(f"{folder} has the post-processing of an older version: fit it again with `{FIT}`")
    ignored = {key for key, ignore in (("base_sha256", any_base), ("postprocess", without_postprocess)) if ignore}
    _check_settings(model, folder, metadata, ignored)
    left_out = (*SUPERSEDED, *(POSTPROCESS if without_postprocess else ()))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
    prototypes = {name: tensors.pop(f"prototype.{name}", None) for name in metadata.get("conditions", [])}
    statistics = tensors.pop("statistics", None)
    parameters = {name: p for name, p in model.trained_tensors().items() if not name.startswith(left_out)}
    wrong = [f"prototype.{name}" for name, value in prototypes.items() if value is None]
    wrong += [n for n, p in parameters.items() if n not in tensors or tensors[n].shape != p.shape]
    wrong += [n for n in tensors if n not in parameters]
    if wrong:
        raise CheckpointError(f"{folder}: {len(wrong)} tensors missing, extra or of another shape, first {wrong[0]}")
    model.prototypes, model.statistics = {k: v for k, v in prototypes.items() if v is not None}, statistics
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return metadata


def copy_trained(source: DOD, target: DOD) -> None:
    """Copy the trained weights, prototypes and statistics of a model to another, whose base may differ.

    Args:
        source: model to copy from.
        target: model of the same preset, which is changed. Trained tensors that it does not have are ignored.
    """
    target.prototypes, target.statistics = source.prototypes, source.statistics
    values = source.trained_tensors()
    with torch.no_grad():
        for name, parameter in target.trained_tensors().items():
            parameter.copy_(values[name])


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint.

    Args:
        folder: folder of the checkpoint.

    Returns:
        The contents of its dod.json.

    Raises:
        CheckpointError: the file is missing, malformed, or of a newer format.
    """
    file = folder / METADATA
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {folder}: {METADATA} is missing")
    try:
        metadata = json.loads(file.read_text())
        newer = metadata["format"] > FORMAT
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{file}: not the metadata of a DOD checkpoint") from None
    if newer:
        raise CheckpointError(
            f"{file}: format {metadata['format']} is newer than {FORMAT}, the newest known: update dod-toolkit"
        )
    return metadata


def load_model(source: str | Path = "mini", base: str | Path | None = None, ddpm: str | Path | None = None) -> DOD:
    """Load a model that is ready to run.

    Args:
        source: name or folder of a preset, or folder of a checkpoint, which names its preset.
        base: folder or hub id of the base, by default the one that the preset names.
        ddpm: folder, file or hub id of the DDPM, by default the one that the preset names.

    Returns:
        The model, in evaluation mode. Without a checkpoint it is untrained.

    Raises:
        ConfigError: the preset is missing or invalid.
        CheckpointError: weights are missing or malformed, or do not match.

    Example:
        >>> model = load_model("mini")
        >>> list(model.prototypes)
        ['haze', 'rain', 'noise', 'blur', 'low-light']
    """
    preset, folder = preset_of(source, base, ddpm)
    model = DOD.from_preset(preset)
    if folder is not None:
        load_checkpoint(model, folder)
    return model


def preset_of(
    source: str | Path = "mini", base: str | Path | None = None, ddpm: str | Path | None = None
) -> tuple[Preset, Path | None]:
    """Return the preset and the checkpoint that `load_model` loads for the same arguments.

    Args:
        source: name or folder of a preset, or folder of a checkpoint.
        base: folder or hub id of the base.
        ddpm: folder, file or hub id of the DDPM.

    Returns:
        The preset, and the folder of the checkpoint or None.

    Raises:
        ConfigError: the preset is missing or invalid.
        CheckpointError: `source` is neither a checkpoint nor a preset, or the preset of the checkpoint is unknown.
    """
    overrides: dict[str, Any] = {"base.source": base, "ddpm.source": ddpm}
    overrides = {key: _here(value) for key, value in overrides.items() if value is not None}
    folder = Path(source)
    if (folder / METADATA).is_file():
        metadata = {**UNSTATED, **read_metadata(folder)}
        overrides |= {key: metadata[name] for name, key in SETTINGS.items() if name in metadata}
        name = metadata.get("preset", "")
        if name not in shipped_presets():
            raise CheckpointError(
                f"{folder} was trained with {name!r}, which is no shipped preset: give the folder of that preset, with "
                "this checkpoint as its `checkpoint`"
            )
        preset = load_preset(name, overrides)
    elif source not in shipped_presets() and folder.is_dir() and not (folder / "preset.yaml").is_file():
        raise CheckpointError(f"{folder} is neither a checkpoint ({METADATA}) nor a preset (preset.yaml)")
    else:
        preset = load_preset(source, overrides)
        folder = None if preset.checkpoint is None else preset.folder / preset.checkpoint
    return preset, folder


def _here(source: str | Path) -> str:
    """Resolve a path relative to the working directory, so that the preset does not look it up in its own folder."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def _check_settings(model: DOD, folder: Path, metadata: dict[str, Any], ignored: set[str]) -> None:
    """Raise CheckpointError if a checkpoint states another setting, or other conditional layers, than the model has."""
    for key, value in _settings(model).items():
        stated = metadata.get(key, value if key == "step" else UNSTATED.get(key))
        if stated == value or key in (*MAY_DIFFER, *ignored):
            continue
        what = "another base model" if key == "base_sha256" else f"another {key}"
        fit = f", or run `{FIT}`" if key == "postprocess" and value else ""
        if key == "dense" and isinstance(stated, int) and stated > value:
            fit = f", or prune it to {value} with `dod-train prune`"
        raise CheckpointError(
            f"{folder} was trained with {what}: its {key} is {_short(stated)}, that of this model {_short(value)}; "
            f"give the base or preset that it was trained with{fit}"
        )
    layers = metadata.get("layers", [])
    if layers != model.layers:
        raise CheckpointError(
            f"{folder}: its {len(layers)} conditional layers do not match the {len(model.layers)} of this model"
        )


def _check_channels(model: DOD, folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError if M was trained on a c of another length C than that of the model's DDPM."""
    first = tensors.get("modulation.condition_in.0.weight")
    channels = model.mfm.h_space.channels
    if first is not None and first.ndim == 2 and first.shape[1] != channels:
        raise CheckpointError(
            f"{folder} was trained with a DDPM of {first.shape[1]} channels in the middle block, the given one has "
            f"{channels}: give the DDPM it was trained with (512: google/ddpm-*-256; 1024: OpenAI's ADM)"
        )


def _settings(model: DOD) -> dict[str, Any]:
    """Return the settings of a model that dod.json states."""
    lora, detail = model.preset.lora, model.preset.detail
    post = model.preset.postprocess
    return {
        "base_sha256": model.base_sha256,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "conditional": lora.conditional,
        "detail": detail.enabled,
        "dense": detail.dense,
        "postprocess": None if post is None else {**asdict(post), "passing": list(post.passing)},
        "step": asdict(model.preset.step),
        "crops": model.preset.mfm.crops,
        "crop_size": model.preset.mfm.crop_size,
    }


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 16 else repr(value)
