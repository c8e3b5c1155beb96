"""The engines as artefacts of the build: mfm, encoder, decoder, a dynamic UNet, and a merged one for each condition."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dod.model.dod import DOD
from dod_runtime.bundle.safetensors import read_tensors
from dod_runtime.bundle.schema import REFITTED, MergeEntry
from dod_runtime.console import progress
from export.cache import BuildCache, Entry, hash_sources
from export.engines.build import BUILDER, EngineJob, build_engines
from export.engines.targets import TARGETS, EngineTarget, gpu_here
from export.graphs import condition_files
from export.graphs.components import GRAPHS
from export.interface import Component, engine_list, library_version, profile
from export.preflight import ROOT, Options

SOURCES = [
    BUILDER,
    ROOT / "export" / "graphs" / "condition_files.py",
    *(ROOT / "runtime" / "dod_runtime" / "bundle" / f"{name}.py" for name in ("merge", "safetensors")),
]
"""What configures the builder, and merges what it builds."""
BUILDERS_MEMORY = 8 << 30
"""Bytes that the engine builders at work may take together, so that a build of any size fits 12 GB."""
MEMORY_PER_WEIGHT = 4
"""What a builder takes for each byte of weights (6.0 GB were measured for 1.7 GB)."""


def built(
    cache: BuildCache,
    model: DOD,
    options: Options,
    conditions_with_engines: Sequence[str],
    components: Callable[[], Mapping[str, Component]],
    explaining: bool,
) -> Iterator[tuple[str, Entry]]:
    """Each engine of each target that was stale, by name, as it is finished; while explaining none is built."""
    precision = options.precisions[-1]
    for target in (TARGETS[name] for name in options.targets if name in TARGETS):
        named: dict[Path, tuple[str, dict[str, object]]] = {}
        planned = []
        with tempfile.TemporaryDirectory(dir=cache.root) as scratch:
            for engine, graph, condition in engine_list(conditions_with_engines, options.refit, model.gate is not None):
                name = f"engines/{target.name}/{engine}.engine"
                refittable = _exchanged(model) if engine == REFITTED else ()
                inputs = _inputs(cache, options, target, graph, condition, refittable)
                if cache.fresh(name, inputs) or explaining:
                    continue
                weights = cache.path(f"onnx/{precision}/{GRAPHS[graph]}.safetensors")
                job = EngineJob(
                    _graph(cache, model, precision, graph, condition, Path(scratch)),
                    cache.path(name),
                    target,
                    profile(components()[graph], options.batch, options.size),
                    () if target.built_on_gpu else options.capabilities,
                    refittable,
                    MEMORY_PER_WEIGHT * weights.stat().st_size,
                )
                planned.append(job)
                named[job.engine_path] = name, inputs
            records = build_engines(planned, options.workers, BUILDERS_MEMORY)
            for job, record in progress(records, len(planned), f"{target.name} engines") if planned else ():
                name, inputs = named[job.engine_path]
                yield name, cache.record(name, inputs, record.seconds, asdict(record))


def _graph(cache: BuildCache, model: DOD, precision: str, graph: str, condition: str | None, scratch: Path) -> Path:
    onnx_path = cache.path(f"onnx/{precision}/{graph}.onnx")
    if condition is None:
        return onnx_path
    folder = scratch / condition
    folder.mkdir()
    return condition_files.write_merged_graph(
        onnx_path,
        onnx_path.with_name("unet.safetensors"),
        condition_files.merge_entries(model),
        read_tensors(cache.path(f"conditions/{condition}.safetensors"))["modulation"],
        folder,
    )


def _exchanged(model: DOD) -> tuple[str, ...]:
    """The weights of the merged graph that a condition decides."""
    entries = (MergeEntry(**entry) for entry in condition_files.merge_entries(model))
    return tuple(name for entry in entries for name in entry.changes)


def _inputs(
    cache: BuildCache,
    options: Options,
    target: EngineTarget,
    graph: str,
    condition: str | None,
    refittable: Sequence[str],
) -> dict[str, object]:
    precision = options.precisions[-1]
    gpu = gpu_here() if target.built_on_gpu or refittable else None
    return {
        "graph": _hash(cache, f"onnx/{precision}/{graph}.onnx"),
        "weights": _hash(cache, f"onnx/{precision}/{GRAPHS[graph]}.safetensors"),
        "condition": condition and _hash(cache, f"conditions/{condition}.safetensors"),
        "batch": list(options.batch),
        "size": list(options.size),
        "compute capabilities": list(options.capabilities) if gpu is None else [],
        "gpu": gpu and gpu.name,
        "library": library_version(target.name),
        "sources": hash_sources(SOURCES),
        **({"refittable": list(refittable)} if refittable else {}),
    }


def _hash(cache: BuildCache, name: str) -> str | None:
    entry = cache.used.get(name)
    return entry and entry.sha256
