"""What a bundle says of itself: `bundle.json` but for its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dod
from dod.model.dod import DOD
from dod_runtime.bundle.schema import SCHEMA
from export.cache import Entry
from export.engines.targets import TARGETS
from export.graphs.components import graphs_of
from export.graphs.condition_files import merge_entries
from export.interface import Component, engine_list, version
from export.parity.compare import ParityResult, passed_gates
from export.preflight import Options

TOOLS = ("torch", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime", "openvino", "polygraphy")


def describe(
    model: DOD,
    options: Options,
    trained: str,
    components: Mapping[str, Component],
    fp32_modules: Sequence[str],
    *,
    conditions: Sequence[str],
    targets: Mapping[str, dict[str, Any]],
    parity: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The manifest without files. trained: hash of the checkpoint; islands: fp32 modules of the fp16 graphs."""
    preset, precisions = model.preset, {}
    for precision in options.precisions:
        folder = f"onnx/{precision}"
        precisions[precision] = {
            "onnx": {graph: f"{folder}/{graph}.onnx" for graph in graphs_of(model)},
            "weights": {graph: f"{folder}/{file}.safetensors" for graph, file in graphs_of(model).items()},
            "fp32_modules": list(fp32_modules) if precision == "fp16" else [],
        }
    return {
        "schema": SCHEMA,
        "name": preset.name,
        "tools": {"dod-toolkit": dod.__version__, **{tool: version(tool) for tool in TOOLS}},
        "model": {
            "preset": preset.name,
            "checkpoint": str(options.checkpoint),
            "base_sha256": model.base_sha256,
            "checkpoint_sha256": trained,
        },
        "size_multiple": preset.size_multiple,
        "profile": {"batch": list(options.batch), "size": list(options.size)},
        "crops": {"count": preset.mfm.crops, "size": preset.mfm.crop_size},
        "components": dict(components),
        "precisions": precisions,
        "merge": merge_entries(model),
        "conditions": {name: f"conditions/{name}.safetensors" for name in conditions},
        "targets": dict(targets),
        "files": {},
        "parity": list(parity),
    }


def target(
    name: str,
    options: Options,
    conditions: Sequence[str],
    used: Mapping[str, Entry],
    figures: Sequence[ParityResult],
    gated: bool,
) -> dict[str, Any]:
    """One entry of the manifest's `targets`. conditions: those with an engine; used: the finished files by name; gated:
    whether the model has a gate."""
    if name == "openvino":
        return {"precisions": ["fp32", *passed_gates(name, figures)], "version": version(name)}
    if name not in TARGETS:
        return {"precisions": list(options.precisions), "version": version(name)}
    listed = engine_list(conditions, options.refit, gated)
    engines = {engine: f"engines/{name}/{engine}.engine" for engine, _, _ in listed}
    facts = [used[path].facts for path in engines.values()]
    return {
        "precision": options.precisions[-1],
        "version": facts[0]["version"],
        "gpu": next((each["gpu"] for each in facts if each["gpu"]), ""),
        "compute_capabilities": list(facts[0]["compute_capabilities"]),
        "engines": engines,
    }
