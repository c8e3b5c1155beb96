"""Files of the condition paths: each condition's values, and a merged UNet for the engine builders.

`dod-train calibrate` computes the prototypes and stores them in the checkpoint. This module evaluates the modulation
network at each prototype and writes the results.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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

__all__ = [
    "CALIBRATE",
    "chosen_conditions",
    "engine_conditions",
    "merge_entries",
    "modulation_of",
    "without_prototypes",
    "write_condition",
    "write_merged_graph",
]

CALIBRATE = "dod-train calibrate"
"""Command that computes the prototypes of a checkpoint."""


def chosen_conditions(model: DOD, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the conditions to build.

    Args:
        model: The model, whose prototypes name the known conditions.
        names: Conditions that were asked for; None or empty for all known ones.

    Returns:
        The conditions, each once.

    Raises:
        UsageError: If the checkpoint has no prototype of a named condition.
    """
    known = tuple(model.prototypes)
    for name in names or ():
        if name not in known and not known:
            raise UsageError(f"unknown condition {name!r}: the checkpoint has no prototypes; run first: {CALIBRATE}")
        if name not in known:
            raise unknown("condition", name, known)
    return tuple(dict.fromkeys(names)) if names else known


def without_prototypes(model: Mapping[str, Any]) -> str:
    """Return the warning for a checkpoint without prototypes, with the command that adds them.

    Args:
        model: The manifest's `model`: its `preset` and `checkpoint` are named.

    Returns:
        One line.
    """
    command = f"{CALIBRATE} --checkpoint {model['checkpoint']} --images FOLDER"
    return f"{model['checkpoint']} has no prototypes, so only the condition auto is built; calibrate it with: {command}"


def engine_conditions(built: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the conditions that get an engine of their own.

    Args:
        built: Conditions of the bundle.
        names: Conditions that were asked for; None for all of `built`, an empty sequence for none.

    Returns:
        The conditions, each once.

    Raises:
        UsageError: If a name is not one of `built`.
    """
    for name in names or ():
        if name not in built:
            raise unknown("condition", name, built)
    return tuple(built) if names is None else tuple(dict.fromkeys(names))


@torch.no_grad()
def modulation_of(model: DOD, condition: str) -> np.ndarray:
    """Evaluate the modulation network at the prototype of a condition, Eq. (5).

    Args:
        model: The model.
        condition: One of `model.prototypes`.

    Returns:
        gamma and beta of all N conditional layers: float32 [N, 2, r].
    """
    return model.mfm.network(model.prototypes[condition][None].float())[0].numpy()


def write_condition(model: DOD, condition: str, path: Path) -> None:
    """Write the values of one condition, in the form that `dod_runtime.bundle.bundle.Bundle.values` reads.

    Args:
        model: The model.
        condition: One of `model.prototypes`.
        path: Safetensors file to write: `modulation` [N, 2, r], and for a model with a gate `condition` [C] and
            `share` [1]; all float32.
    """
    values = {"modulation": modulation_of(model, condition)}
    if model.gate is not None:
        values["condition"] = model.prototypes[condition].float().numpy()
        values["share"] = np.array([model.share(condition)], np.float32)
    write_tensors(path, {name: (value.dtype, value.shape) for name, value in values.items()}, values.values())


def merge_entries(model: DOD) -> list[dict[str, Any]]:
    """Return the manifest's `merge`: the recipe for merging each conditional layer of the UNet.

    Args:
        model: The model.

    Returns:
        One entry for each layer, with its index, scale and tensor names. Where `simplify_merged` replaces weight or
        bias, the entry also says by what: `bias_into` names the layer that takes over the bias, `input` and `output`
        the constant that replaces a projection of the prompt.
    """
    entries = []
    attention = {f"{name}.{end}": (name, each.is_cross_attention) for name, each in attentions(model.unet.unet)
                 for end in ("to_k", "to_v")}  # fmt: skip
    for name, layer in clora.conditional_layers(model.unet.unet):
        entry: dict[str, Any] = {"layer": name, "index": layer.index, "scale": float(layer.scaling[clora.ADAPTER])}
        entry |= {"weight": f"{name}.weight", "A": f"{name}.lora_A.weight", "B": f"{name}.lora_B.weight"}
        entry["bias"] = None if name in attention else f"{name}.bias"
        if name in attention:
            layer_name, crosses = attention[name]
            if name.endswith("to_v"):
                entry["bias_into"] = f"{layer_name}.to_out.0"
            if crosses:
                entry |= {"input": "prompt", "output": f"{name}.output"}
        if isinstance(layer.get_base_layer(), nn.ConvTranspose2d):
            entry["transposed"] = True
        entries.append(entry)
    return entries


def write_merged_graph(
    onnx_path: Path, weights_path: Path, entries: Sequence[dict], modulation: np.ndarray, folder: Path
) -> Path:
    """Write the merged UNet of one condition as files for an engine builder.

    The runtime's merge computes the values, so an engine holds exactly the weights of a merged session. Names, shapes
    and dtypes do not change, so the offsets in the graph stay valid.

    Args:
        onnx_path: The merged UNet's graph.
        weights_path: The UNet's weights file.
        entries: The manifest's `merge`, see `merge_entries`.
        modulation: Modulation of the condition, float32 [N, 2, r].
        folder: Folder to write graph and weights to.

    Returns:
        Path of the graph in `folder`.
    """
    tensors = read_tensors(weights_path)
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    values = _merged(tensors, [MergeEntry(**entry) for entry in entries], modulation)
    write_tensors(folder / weights_path.name, shapes, values)
    return Path(shutil.copyfile(onnx_path, folder / onnx_path.name))


def _merged(
    tensors: Mapping[str, np.ndarray], entries: Sequence[MergeEntry], modulation: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the merged tensors in the order of `tensors`, one layer at a time, so that memory holds only one UNet."""
    # The layer that absorbs a shift is merged together with the layers that pass theirs on to it, and they without it.
    together = {
        each.layer: [replace(each, bias_into=None), *(other for other in entries if other.bias_into == each.layer)]
        for each in entries
    }
    changed = {name: together[entry.layer] for entry in entries for name in entry.changes}
    layer: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name in changed and name not in layer:
            layer = merge(tensors, changed[name], modulation)
        yield layer[name] if name in changed else tensor
