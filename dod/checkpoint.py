"""Checkpoints: a folder with `dod.safetensors` (only what was trained) and `dod.json` (what it belongs to)."""

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

WEIGHTS, METADATA, FORMAT = "dod.safetensors", "dod.json", 1

SWITCHES = {
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
"""What dod.json says of the preset it was trained with, and the preset's key for it."""
FREE = "crops", "crop_size"
"""What a checkpoint may be loaded with another value of: c is a mean over crops, of more or fewer."""
UNSTATED = {"postprocess": None, "dense": 3}
"""The settings of older checkpoints, which do not state them."""
POSTPROCESS = "gate.", "postprocess."
"""The prefixes of what `python -m dod.extras.postprocess` fits, after both stages."""
SUPERSEDED = "sharpening.", "bypass."
"""The prefixes of an older toolkit's post-processing, which decided for each tile; it has to be fitted again."""
FIT = "python -m dod.extras.postprocess"


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


def load_checkpoint(
    model: DOD, folder: Path, any_base: bool = False, without_postprocess: bool = False
) -> dict[str, Any]:
    """Fill the model with a checkpoint's values, in place, and return its metadata.

    any_base: accept a checkpoint that was trained on other frozen weights, to be trained further on these.
    without_postprocess: leave the model's post-processing as it is, for a command that fits it. CheckpointError where
    the checkpoint is missing or malformed, belongs to another base, or was trained with other switches.
    """
    metadata = read_metadata(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    _check_channels(model, folder, tensors)
    if not without_postprocess and any(name.startswith(SUPERSEDED) for name in tensors):
        raise CheckpointError(f"{folder} holds the post-processing of an older toolkit: fit it again with {FIT}")
    left_out = (*SUPERSEDED, *(POSTPROCESS if without_postprocess else ()))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
    for key, value in _switches(model).items():
        stated = metadata.get(key, value if key == "step" else UNSTATED.get(key))
        free = key in FREE or (any_base and key == "base_sha256") or (without_postprocess and key == "postprocess")
        if stated != value and not free:
            what = "another base model" if key == "base_sha256" else f"another {key}"
            fit = f", or fit it to this checkpoint: {FIT}" if key == "postprocess" and value else ""
            if key == "dense" and isinstance(stated, int) and stated > value:
                fit = f", or prune it to {value}: python -m dod.extras.prune"
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
    parameters = {name: p for name, p in parameters.items() if not name.startswith(left_out)}
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
