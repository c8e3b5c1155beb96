"""What a bundle's graphs take and give, the shapes its engines are built for, and the versions that made them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx

from dod_runtime.bundle.schema import GATE, REFITTED, dimension
from export.engines.build import ShapeProfile
from export.engines.targets import TARGETS

Component = dict[str, list[dict]]
"""One entry of the manifest's `components`: its `inputs` and `outputs`, each {name, dtype by precision, shape}."""


def read_components(paths: Mapping[str, Mapping[str, Path]]) -> dict[str, Component]:
    """The manifest's `components`, read off the graphs. paths: by precision, then by graph."""
    found: dict[str, Component] = {}
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


def profile(component: Component, batches: Sequence[int], sides: Sequence[int]) -> ShapeProfile:
    """Smallest, usual and largest shape of each input: both sides and the batch go together."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for spec in component["inputs"]:
        for batch, side in zip(batches, sides, strict=True):
            known = {"batch": batch, "height": side, "width": side}
            shapes.setdefault(spec["name"], []).append(tuple(dimension(size, known) for size in spec["shape"]))
    return {name: (least, usual, largest) for name, (least, usual, largest) in shapes.items()}


def engine_list(
    condition_names: Sequence[str], refit: bool, gated: bool = False
) -> Iterator[tuple[str, str, str | None]]:
    """(engine, graph, condition) of every engine of a target, the slowest first. refit: one merged UNet for all."""
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
    """The version of the library that builds a target's engines."""
    packages = importlib.metadata.packages_distributions().get(TARGETS[target].module, [])
    return version(packages[0]) if packages else "unknown"


def version(package: str) -> str:
    """The installed version of a package, also where it goes by its GPU build's name."""
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
