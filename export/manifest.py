"""The content of `bundle.json`, apart from its `files`. It holds nothing that differs between two equal builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dod
from dod_runtime.bundle.schema import SCHEMA
from export.engines.targets import TARGETS
from export.graphs.components import graphs_of
from export.graphs.condition_files import merge_entries
from export.interface import ComponentSpecs, engine_list, version
from export.parity.compare import ParityResult, passed_gates
from export.plan import BuildPlan
from export.results import manifest_rows
from export.steps.engines import engine_file
from export.steps.model_files import condition_file, graph_file, weights_file

__all__ = ["describe", "describe_target"]

TOOLS = ("torch", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime", "openvino", "polygraphy")


def describe(
    plan: BuildPlan,
    components: Mapping[str, ComponentSpecs],
    fp32_modules: Sequence[str],
    targets: Mapping[str, dict[str, Any]],
    results: Sequence[ParityResult],
) -> dict[str, Any]:
    """Return the content of `bundle.json`, its `files` empty.

    Args:
        plan: the build.
        components: inputs and outputs of the graphs.
        fp32_modules: modules kept in fp32 in the fp16 graphs.
        targets: see `describe_target`, by name.
        results: the parity results.
    """
    model, options = plan.model, plan.options
    preset, graphs = model.preset, graphs_of(model)
    return {
        "schema": SCHEMA,
        "name": preset.name,
        "tools": {"dod-toolkit": dod.__version__, **{tool: version(tool) for tool in TOOLS}},
        "model": {
            "preset": preset.name,
            "checkpoint": str(options.checkpoint),
            "base_sha256": model.base_sha256,
            "checkpoint_sha256": plan.checkpoint_sha256,
        },
        "size_multiple": preset.size_multiple,
        "profile": {"batch": list(options.batch), "size": list(options.size)},
        "crops": {"count": preset.mfm.crops, "size": preset.mfm.crop_size},
        "components": dict(components),
        "precisions": {
            precision: {
                "onnx": {graph: graph_file(precision, graph) for graph in graphs},
                "weights": {graph: weights_file(precision, graph) for graph in graphs},
                "fp32_modules": list(fp32_modules) if precision == "fp16" else [],
            }
            for precision in options.precisions
        },
        "merge": merge_entries(model),
        "conditions": {name: condition_file(name) for name in plan.conditions},
        "targets": dict(targets),
        "files": {},
        "parity": manifest_rows(results, ("auto", *plan.conditions)) if results else [],
    }


def describe_target(name: str, plan: BuildPlan, results: Sequence[ParityResult]) -> dict[str, Any]:
    """Return one entry of the manifest's `targets`.

    Args:
        name: name of the target.
        plan: the build. Where the target has engines, they are finished.
        results: the parity results, which decide which precisions OpenVINO offers.
    """
    precisions = plan.options.precisions
    if name == "openvino":
        return {"precisions": ["fp32", *passed_gates(name, results)], "version": version(name)}
    if name not in TARGETS:
        return {"precisions": list(precisions), "version": version(name)}
    listed = engine_list(plan.engine_conditions, plan.options.refit, plan.model.gate is not None)
    engines = {engine: engine_file(name, engine) for engine, _, _ in listed}
    facts = [plan.cache.used[file].facts for file in engines.values()]
    return {
        "precisions": [precisions[-1]],
        "version": facts[0]["version"],
        "gpu": next((each["gpu"] for each in facts if each["gpu"]), ""),
        "compute_capabilities": list(facts[0]["compute_capabilities"]),
        "engines": engines,
    }
