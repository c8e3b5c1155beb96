"""Inputs and outputs of a bundle's graphs, the shapes and names of its engines, and versions of libraries."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx

from dod_runtime.bundle.schema import GATE, REFITTED, dimension
from export.engines.build import InputShapes
from export.engines.targets import TARGETS

__all__ = ["ComponentSpecs", "engine_list", "library_version", "profile", "read_components", "version"]

ComponentSpecs = dict[str, list[dict]]
"""One entry of the manifest's `components`: its `inputs` and `outputs`, each with name, dtype by precision, shape."""


def read_components(paths: Mapping[str, Mapping[str, Path]]) -> dict[str, ComponentSpecs]:
    """Return the manifest's `components`, read from the graphs.

    Args:
        paths: ONNX files by precision, then by graph.
    """
    found: dict[str, ComponentSpecs] = {}
    for precision, files in paths.items():
        for graph, path in files.items():
            model = onnx.load(path, load_external_data=False)
            for part, specs in (("inputs", _specs(model.graph.input)), ("outputs", _specs(model.graph.output))):
                for i, spec in enumerate(specs):
                    kept = found.setdefault(graph, {}).setdefault(part, [])
                    if i == len(kept):
                        kept.append({**spec, "dtype": {}})
                    kept[i]["dtype"][precision] = spec["dtype"]
    return found


def profile(component: ComponentSpecs, batches: Sequence[int], sides: Sequence[int]) -> InputShapes:
    """Return the minimum, optimal and maximum shape of each input. Batch, height and width grow together.

    Args:
        component: its entry of the manifest's `components`.
        batches: three batch sizes.
        sides: three sides of a square image, in pixels.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for spec in component["inputs"]:
        for batch, side in zip(batches, sides, strict=True):
            known = {"batch": batch, "height": side, "width": side}
            shapes.setdefault(spec["name"], []).append(tuple(dimension(size, known) for size in spec["shape"]))
    return {name: (least, optimal, largest) for name, (least, optimal, largest) in shapes.items()}


def engine_list(
    condition_names: Sequence[str], refit: bool, gated: bool = False
) -> Iterator[tuple[str, str, str | None]]:
    """List the engines of a target, the slowest to build first.

    Args:
        condition_names: conditions that get an engine.
        refit: one merged UNet engine serves all conditions.
        gated: the model has a gate.

    Yields:
        Name of the engine, its graph, and the condition that is merged into it, None without one.
    """
    yield "unet_dynamic", "unet_dynamic", None
    if refit:
        yield REFITTED, "unet_merged", None
        condition_names = ()
    for condition in condition_names:
        yield f"unet_{condition}", "unet_merged", condition
    for graph in ("decoder", "encoder", "mfm", *([GATE] if gated else [])):
        yield graph, graph, None


@cache
def library_version(target: str) -> str:
    """Return the version of the library that builds a target's engines.

    Args:
        target: name of the target.
    """
    packages = importlib.metadata.packages_distributions().get(TARGETS[target].module, [])
    return version(packages[0]) if packages else "unknown"


def version(package: str) -> str:
    """Return the installed version of a package.

    Args:
        package: name of its distribution. Its GPU build (`<package>-gpu`) counts too.
    """
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _specs(values: Sequence[onnx.ValueInfoProto]) -> list[dict]:
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        specs.append({"name": value.name, "dtype": dtype, "shape": shape})
    return specs
