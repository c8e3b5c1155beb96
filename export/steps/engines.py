"""The engines: MFM, encoder, decoder, the dynamic UNet, and merged UNets, one per condition or one that is refitted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from dod.model.dod import DOD
from dod_runtime.bundle.safetensors import read_tensors
from dod_runtime.bundle.schema import REFITTED, MergeEntry
from dod_runtime.console import progress
from export.cache import Artifact, Facts
from export.engines.build import EngineJob, build_engines
from export.engines.targets import TARGETS, EngineTarget, gpu_here
from export.graphs import condition_files
from export.interface import ComponentSpecs, engine_list, library_version, profile
from export.plan import BuildPlan
from export.reproducible import fixed_addresses, fixed_length_links
from export.sources import hash_sources
from export.steps.model_files import condition_file, graph_file, weights_file

__all__ = ["artifacts", "engine_file"]

SOURCES = ("export/engines", "export/graphs/condition_files.py", "dod_runtime/bundle")
"""Rooms that configure the builder and merge what it builds."""
BUILDERS_MEMORY = 8 << 30
"""Bytes that the builders at work may take together, so that a build of any size fits into 12 GB."""
MEMORY_PER_WEIGHT = 4
"""Bytes that a builder takes for each byte of weights (measured: 6.0 GB for 1.7 GB)."""


def engine_file(target: str, engine: str) -> str:
    """Return the name of an engine's file in the bundle.

    Args:
        target: name of the target.
        engine: name of the engine.
    """
    return f"engines/{target}/{engine}.engine"


def artifacts(plan: BuildPlan, components: Callable[[], Mapping[str, ComponentSpecs]]) -> list[Artifact]:
    """Return the engines of each target, several of which are built at a time.

    Args:
        plan: the build.
        components: gives the manifest's `components` once the graphs are finished.
    """
    options, found = plan.options, []
    for target in (TARGETS[name] for name in options.targets if name in TARGETS):
        maker, sources = partial(_build, plan, target, components), hash_sources(*SOURCES)
        for engine, graph, condition in engine_list(plan.engine_conditions, options.refit, plan.model.gate is not None):
            refittable = list(_refittable(plan.model, engine))
            gpu = gpu_here() if target.built_on_gpu or refittable else None
            inputs = {
                "batch": list(options.batch),
                "size": list(options.size),
                "compute capabilities": list(options.capabilities) if gpu is None else [],
                "gpu": gpu and gpu.name,
                "library": library_version(target.name),
                "sources": sources,
                **({"refittable": refittable} if refittable else {}),
            }
            found.append(Artifact(engine_file(target.name, engine), inputs, maker, _files(plan, graph, condition)))
    return found


def _files(plan: BuildPlan, graph: str, condition: str | None) -> tuple[str, ...]:
    """The graph that an engine is built from, its weights, and the condition that is merged into them."""
    precision = plan.options.precisions[-1]
    files = graph_file(precision, graph), weights_file(precision, graph)
    return files if condition is None else (*files, condition_file(condition))


def _refittable(model: DOD, engine: str) -> tuple[str, ...]:
    """The weights of the merged graph that depend on the condition, where an engine is refitted with them."""
    if engine != REFITTED:
        return ()
    entries = (MergeEntry(**entry) for entry in condition_files.merge_entries(model))
    return tuple(name for entry in entries for name in entry.changes)


def _build(
    plan: BuildPlan,
    target: EngineTarget,
    components: Callable[[], Mapping[str, ComponentSpecs]],
    files: Mapping[str, Path],
) -> Generator[tuple[str, Facts], None, None]:
    options, specs, jobs = plan.options, components(), {}
    with (
        tempfile.TemporaryDirectory(dir=plan.cache.scratch) as scratch,
        fixed_length_links(plan.cache.folder, Path(scratch)) as (finished, work),
        fixed_addresses(),
    ):
        for engine, graph, condition in engine_list(plan.engine_conditions, options.refit, plan.model.gate is not None):
            name = engine_file(target.name, engine)
            if name not in files:
                continue
            source, weights, *values = (finished / each for each in _files(plan, graph, condition))
            built = work / f"{engine}.engine"
            jobs[built] = (
                name,
                EngineJob(
                    _merged(plan, source, weights, values[0], work / engine) if values else source,
                    built,
                    target,
                    profile(specs[graph], options.batch, options.size),
                    () if target.built_on_gpu else options.capabilities,
                    _refittable(plan.model, engine),
                    MEMORY_PER_WEIGHT * weights.stat().st_size,
                ),
            )
        records = build_engines([job for _, job in jobs.values()], options.workers, BUILDERS_MEMORY)
        for job, record in progress(records, len(jobs), f"{target.name} engines"):
            name, _ = jobs[job.engine_path]
            os.replace(job.engine_path, files[name])
            yield name, asdict(record)


def _merged(plan: BuildPlan, graph: Path, weights: Path, values: Path, folder: Path) -> Path:
    """Write the graph with the values of one condition merged into its weights to a new folder."""
    folder.mkdir()
    modulation = read_tensors(values)["modulation"]
    return condition_files.write_merged_graph(
        graph, weights, condition_files.merge_entries(plan.model), modulation, folder
    )
