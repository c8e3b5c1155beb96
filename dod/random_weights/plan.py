"""Plan of a run: the folders it writes, the disk space it needs, and the preset that refers to its parts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ..config import Preset, preset_file
from ..errors import CheckpointError
from ..model.adm import ADMEncoder
from ..model.dod import DOD
from ..model.networks import new_ddpm, new_unet, new_vae
from .layouts import ADM_FILE, adm_decoder

__all__ = ["PARTS", "PLACES", "Variant", "check_plan", "required_bytes", "variants", "write_preset"]

PLACES = {"sd": "base", "ddpm": "ddpm", "adm": "adm"}
"""Folder of each frozen part."""
PARTS = (*PLACES, "dod")
"""Parts that a run can write; "dod" is the checkpoint."""


@dataclass(frozen=True)
class Variant:
    """Preset that a run writes.

    Attributes:
        ddpm: its DDPM, "ddpm" (diffusers) or "adm".
        folder: its folder.
    """

    ddpm: str
    folder: Path


def variants(parts: Sequence[str], out: Path) -> list[Variant]:
    """Return the presets that a run writes: one for each DDPM among its parts, by default the diffusers one.

    Args:
        parts: parts to write.
        out: folder to write to. The preset on the ADM is in its subfolder.
    """
    named = [name for name in ("ddpm", "adm") if name in parts] or ["ddpm"]
    return [Variant(name, out if name == "ddpm" else out / PLACES["adm"]) for name in named]


def check_plan(preset: Preset, out: Path, parts: Sequence[str], itemsize: int) -> None:
    """Check that a run can write its parts.

    Args:
        preset: preset whose structure is written.
        out: folder to write to.
        parts: parts to write.
        itemsize: bytes per parameter of the frozen parts.

    Raises:
        CheckpointError: a part exists already, the base of the checkpoint is missing, or the disk is too full.
    """
    wanted = [out / PLACES[part] for part in parts if part in PLACES]
    wanted += [variant.folder / "dod" for variant in variants(parts, out) if "dod" in parts]
    if there := [path for path in wanted if path.exists()]:
        raise CheckpointError(f"{there[0]} exists already: remove it, give another folder, or leave it out of --parts")
    if "dod" in parts:
        for part in ("sd", *(variant.ddpm for variant in variants(parts, out))):
            if part not in parts and not (out / PLACES[part]).exists():
                raise CheckpointError(f"dod needs {out / PLACES[part]}, which does not exist: add {part} to --parts")
    needed = required_bytes(preset, parts, itemsize)
    free = shutil.disk_usage(next(path for path in (out, *out.resolve().parents) if path.exists())).free
    if needed > free:
        raise CheckpointError(f"{out}: {needed / 1e9:.2f} GB are needed, but only {free / 1e9:.2f} GB are free")


def required_bytes(preset: Preset, parts: Sequence[str], itemsize: int) -> int:
    """Return the size of the parts on disk in bytes, without names and prompt (a few hundred kilobytes).

    Args:
        preset: preset whose structure is written.
        parts: parts to write.
        itemsize: bytes per parameter of the frozen parts.
    """
    total = 0
    with torch.device("meta"):
        if "sd" in parts:
            total += itemsize * (_count(new_vae(preset.base.vae)) + _count(new_unet(preset.base.unet)))
        if "ddpm" in parts:
            total += itemsize * _count(new_ddpm(preset.ddpm))
        if "adm" in parts:
            total += itemsize * (_count(ADMEncoder()) + sum(math.prod(shape) for shape in adm_decoder().values()))
        if "dod" in parts:
            model = DOD.from_preset(preset)
            total += (
                4 * sum(tensor.numel() for tensor in model.trained_tensors().values()) * len(variants(parts, Path()))
            )
    return total


def write_preset(source: str, variant: Variant, checkpoint: bool) -> None:
    """Write the preset.yaml of a variant: the preset that gave the structure, with the sources of the written parts.

    Args:
        source: name, folder or file of the preset that gave the structure.
        variant: preset to write.
        checkpoint: refer to the checkpoint in the folder.
    """
    values: dict[str, Any] = yaml.safe_load(preset_file(source).read_text())
    values["base"] = values.get("base", {}) | {"source": PLACES["sd"]}
    if variant.ddpm == "adm":
        values["base"]["source"] = f"../{PLACES['sd']}"
        values["ddpm"] = {"source": ADM_FILE, "layout": "adm"}
    else:
        values["ddpm"] = values.get("ddpm", {}) | {"source": PLACES["ddpm"]}
    values.pop("checkpoint", None)
    if checkpoint:
        values["checkpoint"] = "dod"
    head = "# Written by dod-train random-weights: random weights for measurements at full size.\n"
    (variant.folder / "preset.yaml").write_text(head + yaml.safe_dump(values, sort_keys=False))


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
