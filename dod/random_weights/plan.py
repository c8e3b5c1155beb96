"""What a run writes and where, whether there is room for it, and the preset that ties it together."""

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
from ..model.base import new_ddpm, new_unet, new_vae
from ..model.dod import DOD
from .layouts import ADM_FILE, adm_decoder

PLACES = {"sd": "base", "ddpm": "ddpm", "adm": "adm"}
"""The folder of each frozen part."""
PARTS = (*PLACES, "dod")


@dataclass(frozen=True)
class Variant:
    """A preset of the folder: on the diffusers DDPM in the folder itself, on the ADM in its subfolder."""

    ddpm: str
    folder: Path


def variants(parts: Sequence[str], out: Path) -> list[Variant]:
    """The presets that a run writes: one for each kind of DDPM among its parts; the diffusers one if there is none."""
    named = [name for name in ("ddpm", "adm") if name in parts] or ["ddpm"]
    return [Variant(name, out if name == "ddpm" else out / PLACES["adm"]) for name in named]


def check_plan(preset: Preset, out: Path, parts: Sequence[str], itemsize: int) -> None:
    """CheckpointError where a part is there already, the checkpoint stands on one that is not, or there is no room."""
    wanted = [out / PLACES[part] for part in parts if part in PLACES]
    wanted += [variant.folder / "dod" for variant in variants(parts, out) if "dod" in parts]
    if there := [path for path in wanted if path.exists()]:
        raise CheckpointError(f"{there[0]} is there already: remove it, name another folder, or leave it out (--parts)")
    if "dod" in parts:
        for part in ("sd", *(variant.ddpm for variant in variants(parts, out))):
            if part not in parts and not (out / PLACES[part]).exists():
                raise CheckpointError(f"dod stands on {out / PLACES[part]}, which is not there: add {part} to --parts")
    needed = required_bytes(preset, parts, itemsize)
    free = shutil.disk_usage(next(path for path in (out, *out.resolve().parents) if path.exists())).free
    if needed > free:
        raise CheckpointError(f"{out}: {needed / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free there")


def required_bytes(preset: Preset, parts: Sequence[str], itemsize: int) -> int:
    """What the parts take on disk, but for some hundred kilobytes of names and prompt. Counted on the meta device."""
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
    """preset.yaml: the preset that gave the structure, on the parts of this folder."""
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
    head = "# Written by python -m dod.random_weights: random weights for work at full size.\n"
    (variant.folder / "preset.yaml").write_text(head + yaml.safe_dump(values, sort_keys=False))


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
