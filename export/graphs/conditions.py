"""Condition paths: a prototype's modulation as a file, and the merged UNet of one condition for an engine builder.

Prototypes are computed in `dod` and stored in the checkpoint; here they are only turned into values.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dod.model import clora
from dod.model.dod import DOD
from dod_runtime.bundle.merge import merge
from dod_runtime.bundle.safetensors import read_tensors, write_tensors
from dod_runtime.bundle.schema import MergeEntry
from dod_runtime.errors import UsageError, unknown
from export.graphs.simplify import attentions

CALIBRATE = "python -m dod.training.stages calibrate"
"""The command that gives a checkpoint its prototypes."""


def chosen_conditions(model: DOD, names: Sequence[str] | None) -> tuple[str, ...]:
    """The conditions to build, all of the checkpoint's where none are named. UsageError for one it does not know."""
    known = tuple(model.prototypes)
    for name in names or ():
        if name not in known and not known:
            raise UsageError(f"unknown condition {name!r}: the checkpoint has no prototypes; run first: {CALIBRATE}")
        if name not in known:
            raise unknown("condition", name, known)
    return tuple(dict.fromkeys(names)) if names else known


def without_prototypes(model: Mapping[str, Any]) -> str:
    """Say what a checkpoint without prototypes lacks, and which command adds them. model: the manifest's `model`."""
    command = f"{CALIBRATE} --preset {model['preset']} --photographs FOLDER"
    return f"{model['checkpoint']} has no prototypes, so only the condition auto is built; calibrate it with: {command}"


def engine_conditions(built: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    """The conditions that get an engine of their own: all that are built where none are named. Raises UsageError."""
    for name in names or ():
        if name not in built:
            raise unknown("condition", name, built)
    return tuple(built) if names is None else tuple(dict.fromkeys(names))


@torch.no_grad()
def modulation_of(model: DOD, condition: str) -> np.ndarray:
    """gamma and beta at a condition's prototype: float32 [N, 2, r] (equation (5))."""
    return model.mfm.network(model.prototypes[condition][None].float())[0].numpy()


def write_condition(model: DOD, condition: str, path: Path) -> None:
    """Write the values of one condition: see `dod_runtime.Bundle.values`."""
    values = {"modulation": modulation_of(model, condition)}
    if model.gate is not None:
        values["condition"] = model.prototypes[condition].float().numpy()
        values["share"] = np.array([model.share(condition)], np.float32)
    write_tensors(path, {name: (value.dtype, value.shape) for name, value in values.items()}, values.values())


def merge_entries(model: DOD) -> list[dict[str, Any]]:
    """The manifest's `merge`: for each conditional layer of the UNet its index, scale and tensors, and where the merged
    graph holds something else than its weight and bias (see `simplify_merged`), what becomes of them."""
    entries = []
    attention = {f"{name}.{end}": (name, each.is_cross_attention) for name, each in attentions(model.unet.unet)
                 for end in ("to_k", "to_v")}  # fmt: skip
    for name, layer in clora.conditional_layers(model.unet.unet):
        entry: dict[str, Any] = {"layer": name, "index": layer.index, "scale": float(layer.scaling[clora.ADAPTER])}
        entry |= {"weight": f"{name}.weight", "A": f"{name}.lora_A.weight", "B": f"{name}.lora_B.weight"}
        entry["bias"] = None if name in attention else f"{name}.bias"
        if name in attention:
            within, crosses = attention[name]
            if name.endswith("to_v"):
                entry["bias_into"] = f"{within}.to_out.0"
            if crosses:
                entry |= {"input": "prompt", "output": f"{name}.output"}
        if isinstance(layer.get_base_layer(), nn.ConvTranspose2d):
            entry["transposed"] = True
        entries.append(entry)
    return entries


def write_merged_graph(
    onnx_path: Path, weights_path: Path, entries: Sequence[dict], modulation: np.ndarray, folder: Path
) -> Path:
    """The merged UNet's graph and one condition's values in `folder`, for a builder that reads files.

    The runtime's own merge is used, so an engine holds exactly what a merged session computes with. Names, shapes and
    types do not change, so neither do the offsets that the graph points to. Returns the graph's path.
    """
    tensors = read_tensors(weights_path)
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    values = _merged(tensors, [MergeEntry(**entry) for entry in entries], modulation)
    write_tensors(folder / weights_path.name, shapes, values)
    return Path(shutil.copyfile(onnx_path, folder / onnx_path.name))


def _merged(
    tensors: Mapping[str, np.ndarray], entries: Sequence[MergeEntry], modulation: np.ndarray
) -> Iterator[np.ndarray]:
    """The values of a condition in the order of `tensors`, merged layer by layer: never two UNets in memory."""
    together = {each.layer: [each, *(other for other in entries if other.bias_into == each.layer)] for each in entries}
    changed = {name: together[entry.layer] for entry in entries for name in entry.changes}
    layer: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name in changed and name not in layer:
            layer = merge(tensors, changed[name], modulation)
        yield layer[name] if name in changed else tensor
