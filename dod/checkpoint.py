"""Checkpoints: a folder with `dod.safetensors` (only what was trained) and `dod.json` (what it belongs to)."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .config import Preset, load_preset, shipped_presets
from .errors import CheckpointError
from .model import DOD
from .tensors import read_safetensors, write_safetensors

WEIGHTS, METADATA, FORMAT = "dod.safetensors", "dod.json", 1

SWITCHES = {
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "conditional": "lora.conditional",
    "detail": "detail.enabled",
    "dense": "detail.dense",
    "sharpening": "detail.sharpening",
    "bypass": "detail.bypass",
    "step": "step",
    "crops": "mfm.crops",
    "crop_size": "mfm.crop_size",
}
"""What dod.json says of the preset it was trained with, and the preset's key for it."""
FREE = "crops", "crop_size"
"""What a checkpoint may be loaded with another value of: c is a mean over crops, of more or fewer."""
UNSTATED = {"bypass": None, "dense": 3}
"""What checkpoints of before have that do not say so."""
LATER = {"sharpening": "python -m dod.training.sharpening", "bypass": "python -m dod.training.bypass"}
"""What a finished checkpoint can be given, and by which command."""


def save_checkpoint(model: DOD, folder: Path, dtype: torch.dtype = torch.float32, **facts: Any) -> None:
    """Write what was trained, the prototypes and statistics of c, and the identity of the base.

    Both files are written beside the folder's old ones before they replace them: a write that fails leaves those whole.
    facts: more JSON values for dod.json, such as steps and stage. Raises CheckpointError or OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().to(dtype).contiguous() for name, p in model.trained_tensors().items()}
    tensors |= {f"prototype.{name}": value.float().cpu().contiguous() for name, value in model.prototypes.items()}
    if model.statistics is not None:
        tensors["statistics"] = model.statistics.float().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "preset": model.preset.name,
        **_switches(model),
        "conditions": list(model.prototypes),
        "layers": model.layers,
        **facts,
    }
    with TemporaryDirectory(prefix=".", dir=folder) as temporary:
        write_safetensors(tensors, Path(temporary) / WEIGHTS)
        (Path(temporary) / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        for name in (WEIGHTS, METADATA):
            os.replace(Path(temporary) / name, folder / name)


def load_checkpoint(model: DOD, folder: Path, any_base: bool = False, lacking: Collection[str] = ()) -> dict[str, Any]:
    """Fill the model with a checkpoint's values, in place, and return its metadata.

    any_base: take one that was trained on other frozen weights too, to be trained further on these. lacking: what of
    `LATER` it may be without, for a model that is to get it. CheckpointError where it is missing or malformed, belongs
    to another base, or was trained with other switches.
    """
    metadata = read_metadata(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    _check_channels(model, folder, tensors)
    absent = [key for key in LATER if not any(name.startswith(f"{key}.") for name in tensors)]
    for key, value in _switches(model).items():
        unstated = value if key in ("step", *LATER) and key not in absent else UNSTATED.get(key)  # by the oldest
        stated = metadata.get(key, unstated)
        if (any_base and key == "base_sha256") or (key in lacking and key in absent) or key in FREE:
            continue
        if stated != value:
            what = "another base model" if key == "base_sha256" else f"another {key}"
            fit = f", or fit one to it: {LATER[key]}" if key in LATER and value else ""
            if key == "dense" and isinstance(stated, int) and stated > value:
                fit = f", or prune it to {value}: python -m dod.training.prune"
            raise CheckpointError(
                f"{folder} was trained on {what}: it states {key} {_short(stated)}, this model has {_short(value)}; "
                f"give the base or preset that it was trained with{fit}"
            )
    layers = metadata.get("layers", [])
    if layers != model.layers:
        raise CheckpointError(
            f"{folder}: its {len(layers)} conditional layers are not this model's {len(model.layers)}"
        )
    prototypes = {name: tensors.pop(f"prototype.{name}", None) for name in metadata.get("conditions", [])}
    statistics = tensors.pop("statistics", None)
    parameters = model.trained_tensors()
    wrong = [f"prototype.{name}" for name, value in prototypes.items() if value is None]
    to_come = tuple(f"{key}." for key in lacking if key in absent)
    parameters = {name: p for name, p in parameters.items() if not name.startswith(to_come)}
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
    """Fill a model with what another of the same preset was trained to, whatever their bases hold."""
    target.prototypes, target.statistics = source.prototypes, source.statistics
    values = source.trained_tensors()
    with torch.no_grad():
        for name, parameter in target.trained_tensors().items():
            parameter.copy_(values[name])


def read_metadata(folder: Path) -> dict[str, Any]:
    """dod.json of a checkpoint folder. CheckpointError where it is missing, malformed or of a newer format."""
    file = folder / METADATA
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {folder}: {METADATA} is missing")
    try:
        metadata = json.loads(file.read_text())
        newer = metadata["format"] > FORMAT
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{file}: not a DOD checkpoint's metadata") from None
    if newer:
        raise CheckpointError(
            f"{file}: format {metadata['format']} is newer than this toolkit's {FORMAT}; update dod-toolkit"
        )
    return metadata


def load_model(source: str | Path = "mini", base: str | Path | None = None, ddpm: str | Path | None = None) -> DOD:
    """A model ready to run, from a preset's name or folder, or from a checkpoint's folder and the preset it names.

    base, ddpm: where the frozen weights lie, if not where the preset says.
    """
    preset, folder = preset_of(source, base, ddpm)
    model = DOD.from_preset(preset)
    if folder is not None:
        load_checkpoint(model, folder)
    return model


def preset_of(
    source: str | Path = "mini", base: str | Path | None = None, ddpm: str | Path | None = None
) -> tuple[Preset, Path | None]:
    """What `load_model` loads by the same arguments: the preset, and the checkpoint's folder where it has one."""
    overrides: dict[str, Any] = {"base.source": base, "ddpm.source": ddpm}
    overrides = {key: _here(value) for key, value in overrides.items() if value is not None}
    folder = Path(source)
    if (folder / METADATA).is_file():
        metadata = {**UNSTATED, **read_metadata(folder)}
        overrides |= {key: metadata[name] for name, key in SWITCHES.items() if name in metadata}
        name = metadata.get("preset", "")
        if name not in shipped_presets():
            raise CheckpointError(
                f"{folder} was trained with a preset of its own, {name!r}: give that preset's folder in its place, "
                "whose `checkpoint` names it"
            )
        preset = load_preset(name, overrides)
    elif source not in shipped_presets() and folder.is_dir() and not (folder / "preset.yaml").is_file():
        raise CheckpointError(f"{folder} is neither a checkpoint ({METADATA}) nor a preset (preset.yaml)")
    else:
        preset = load_preset(source, overrides)
        folder = None if preset.checkpoint is None else preset.folder / preset.checkpoint
    return preset, folder


def _here(source: str | Path) -> str:
    """A source that a caller names: relative to where the caller stands, not to the preset."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def _check_channels(model: DOD, folder: Path, tensors: dict[str, Tensor]) -> None:
    """CheckpointError where M was trained on a c of another length than the model's DDPM gives."""
    first = tensors.get("modulation.condition_in.0.weight")
    channels = model.mfm.h_space.channels
    if first is not None and first.ndim == 2 and first.shape[1] != channels:
        raise CheckpointError(
            f"{folder} was trained on a DDPM with {first.shape[1]} channels in its middle block, the given one has "
            f"{channels}: give the DDPM it was trained with (512: google/ddpm-*-256; 1024: OpenAI's ADM)"
        )


def _switches(model: DOD) -> dict[str, Any]:
    lora, detail = model.preset.lora, model.preset.detail
    fitted = {key: getattr(detail, key) for key in LATER}
    return {
        "base_sha256": model.base_sha256,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "conditional": lora.conditional,
        "detail": detail.enabled,
        "dense": detail.dense,
        **{key: asdict(part) if part and detail.enabled else None for key, part in fitted.items()},
        "step": asdict(model.preset.step),
        "crops": model.preset.mfm.crops,
        "crop_size": model.preset.mfm.crop_size,
    }


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 16 else repr(value)
