"""Checkpoints: a folder with `dod.safetensors` (only what was trained) and `dod.json` (what it belongs to)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .base import read_safetensors
from .config import Preset, load_preset
from .errors import CheckpointError
from .model import DOD

WEIGHTS, METADATA, FORMAT = "dod.safetensors", "dod.json", 1


def save_checkpoint(model: DOD, folder: Path, dtype: torch.dtype = torch.float32, **facts: Any) -> None:
    """Write what was trained, the prototypes and statistics of c, and the identity of the base. Atomic per file.

    facts: more JSON values for dod.json, such as steps and stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().to(dtype).contiguous() for name, p in _trained(model).items()}
    tensors |= {f"prototype.{name}": value.float().cpu().contiguous() for name, value in model.prototypes.items()}
    if model.statistics is not None:
        tensors["statistics"] = model.statistics.float().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "preset": model.preset.name,
        "base_sha256": model.base_sha256,
        "rank": model.preset.lora.rank,
        "conditional": model.preset.lora.conditional,
        "detail": model.preset.detail.enabled,
        "conditions": list(model.prototypes),
        "layers": model.layers,
        **facts,
    }
    temporary = folder / f".{WEIGHTS}.tmp"
    try:
        save_file(tensors, temporary)
        os.replace(temporary, folder / WEIGHTS)
        temporary.write_text(json.dumps(metadata, indent=1) + "\n")
        os.replace(temporary, folder / METADATA)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(model: DOD, folder: Path) -> dict[str, Any]:
    """Fill the model with a checkpoint's values, in place, and return its metadata.

    CheckpointError where it is missing or malformed, belongs to another base, or was trained with other switches.
    """
    metadata = read_metadata(folder)
    expected = {
        "base_sha256": model.base_sha256,
        "rank": model.preset.lora.rank,
        "conditional": model.preset.lora.conditional,
        "detail": model.preset.detail.enabled,
    }
    for key, value in expected.items():
        if metadata.get(key) != value:
            what = "another base model" if key == "base_sha256" else f"{key} = {metadata.get(key)!r}"
            raise CheckpointError(
                f"{folder} was trained on {what}: it states {key} {_short(metadata.get(key))}, this model has "
                f"{_short(value)}; give the base or preset that it was trained with"
            )
    if metadata.get("layers") != model.layers:
        raise CheckpointError(f"{folder}: its {len(metadata.get('layers', []))} conditional layers are not this model's")
    tensors = read_safetensors(folder / WEIGHTS)
    model.prototypes = {name: tensors.pop(f"prototype.{name}") for name in metadata["conditions"]}
    model.statistics = tensors.pop("statistics", None)
    parameters = _trained(model)
    wrong = [n for n, p in parameters.items() if n not in tensors or tensors[n].shape != p.shape]
    wrong += [n for n in tensors if n not in parameters]
    if wrong:
        raise CheckpointError(f"{folder}: {len(wrong)} tensors missing, extra or of another shape, first {wrong[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return metadata


def read_metadata(folder: Path) -> dict[str, Any]:
    """dod.json of a checkpoint folder. CheckpointError where it is missing, malformed or of a newer format."""
    file = folder / METADATA
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {folder}: {METADATA} is missing")
    try:
        metadata = json.loads(file.read_text())
        version = metadata["format"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{file}: not a DOD checkpoint's metadata") from None
    if version > FORMAT:
        raise CheckpointError(f"{file}: format {version} is newer than this toolkit's {FORMAT}; update dod-toolkit")
    return metadata


def load_model(source: str | Path = "mini", base: str | Path | None = None, ddpm: str | Path | None = None) -> DOD:
    """A model ready to run, from a preset's name or folder, or from a checkpoint folder (its preset is the one it names).

    base, ddpm: where the frozen weights lie, if not where the preset says.
    """
    overrides = {}
    if base is not None:
        overrides["base.source"] = str(base)
    if ddpm is not None:
        overrides["ddpm.source"] = str(ddpm)
    folder = Path(source)
    if (folder / METADATA).is_file():
        metadata = read_metadata(folder)
        overrides |= {
            "lora.rank": metadata["rank"],
            "lora.conditional": metadata["conditional"],
            "detail.enabled": metadata["detail"],
        }
        preset = load_preset(metadata["preset"], overrides)
    elif folder.is_dir() and not (folder / "preset.yaml").is_file():
        raise CheckpointError(f"{folder} is neither a checkpoint ({METADATA}) nor a preset (preset.yaml)")
    else:
        preset = load_preset(source, overrides)
        folder = None if preset.checkpoint is None else Path(preset.locate(preset.checkpoint))
    model = DOD.from_preset(preset)
    if folder is not None:
        load_checkpoint(model, folder)
    return model


def _trained(model: DOD) -> dict[str, Tensor]:
    return {**model.adaptation_parameters(), **model.detail_parameters(), "prompt": model.unet.prompt}


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 16 else repr(value)
