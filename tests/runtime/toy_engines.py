"""Engines of the toy, built by the export's own builder for a compute capability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import REFITTED
from export.engines.build import EngineJob, build_engines
from export.engines.targets import TARGETS
from tests.runtime.toy_bundle import PROFILE, write_toy_bundle


def with_engines(plain: Bundle, destination: Path, library: str, capability: str, refit: bool = False) -> Path:
    """Write the toy with fp16 engines of a library and return the folder of the bundle.

    Args:
        plain: the toy without engines.
        destination: folder of the new bundle.
        library: `tensorrt` or `tensorrt_rtx`.
        capability: compute capability that the engines are for.
        refit: build one refittable engine of the merged UNet for all conditions.
    """
    built, version, gpu = {}, "", ""
    work = destination.with_name(f"{destination.name}.engines")
    work.mkdir()
    for name, graph in _graphs(plain, work, refit).items():
        component = "unet_merged" if name.startswith("unet_") and name != "unet_dynamic" else name
        refitted = tuple(each for entry in plain.manifest.merge for each in entry.changes) if name == REFITTED else ()
        path = work / f"{name}.engine"
        capabilities = (capability,) if library == "tensorrt_rtx" else ()
        job = EngineJob(graph, path, TARGETS[library], _profile(plain, component), capabilities, refitted)
        ((_, record),) = build_engines([job])
        version, gpu = record.version, record.gpu or ""
        built[name] = path.read_bytes()
    paths = {name: f"engines/{library}/{name}.engine" for name in built}
    target = {
        "precisions": ["fp16"],
        "version": version,
        "gpu": gpu,
        "compute_capabilities": [capability],
        "engines": paths,
    }
    return write_toy_bundle(
        destination, targets={library: target}, engines={paths[name]: content for name, content in built.items()}
    )


def _graphs(bundle: Bundle, work: Path, refit: bool) -> dict[str, Path]:
    files = bundle.manifest.precisions["fp16"]
    graphs = {name: bundle.path(files.onnx[name]) for name in ("mfm", "encoder", "unet_dynamic", "decoder")}
    if refit:
        return {**graphs, REFITTED: bundle.path(files.onnx["unet_merged"])}
    for condition in bundle.manifest.conditions:
        graphs[f"unet_{condition}"] = _merged_graph(bundle, condition, work / f"unet_{condition}.onnx")
    return graphs


def _merged_graph(bundle: Bundle, condition: str, path: Path) -> Path:
    """Write the merged graph with the values of a condition in it, and return its path."""
    files = bundle.manifest.precisions["fp16"]
    model = onnx.load(bundle.path(files.onnx["unet_merged"]))
    tensors = bundle.tensors(files.weights["unet_merged"])
    values = {**tensors, **bundle.merged(files, condition)}
    external_data_helper.convert_model_from_external_data(model)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    onnx.save(model, path)
    return path


def _profile(bundle: Bundle, component: str) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the smallest, usual and largest shape of each input."""
    sizes = list(zip(PROFILE["batch"], PROFILE["size"], strict=True))
    return {
        spec.name: tuple(spec.sized(batch, side, side) for batch, side in sizes)
        for spec in bundle.manifest.components[component].inputs
    }
