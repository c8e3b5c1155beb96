"""The model's files: weights, ONNX graphs, and the values of each condition."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dod.model.dod import DOD
from dod_runtime.console import progress
from export.cache import Artifact, Facts, writes
from export.fingerprints import hash_tensors
from export.graphs import components, condition_files, trace
from export.graphs.fp16 import fp16_copy
from export.graphs.trace_workers import TraceJob, trace_all
from export.plan import BuildPlan
from export.steps.precision import FP32_MODULES, read_fp32_modules

__all__ = ["MetaCopies", "condition_file", "conditions_of", "graph_file", "graphs", "weights", "weights_file"]

SLOWEST = ("unet_dynamic", "unet_merged", "decoder", "encoder", "mfm", "gate")
"""Graphs in the order of tracing: the slowest first, so that two workers end together."""


def graph_file(precision: str, graph: str) -> str:
    """Return the name of a graph's file in the bundle.

    Args:
        precision: of its weights and inputs.
        graph: name of the graph.
    """
    return f"onnx/{precision}/{graph}.onnx"


def weights_file(precision: str, graph: str) -> str:
    """Return the name of the weights file that a graph points into. Both UNet graphs share one.

    Args:
        precision: of the weights.
        graph: name of the graph.
    """
    return f"onnx/{precision}/{components.GRAPHS[graph]}.safetensors"


def condition_file(condition: str) -> str:
    """Return the name of the file with a condition's values.

    Args:
        condition: name of the condition.
    """
    return f"conditions/{condition}.safetensors"


class MetaCopies:
    """Copies of the simplified model without storage, by precision, each made when it is first asked for.

    Args:
        plan: the build, whose precision step is finished by then.
    """

    def __init__(self, plan: BuildPlan) -> None:
        self._plan = plan
        self._copies: dict[str, DOD] = {}

    def of(self, precision: str) -> DOD:
        """Return the copy in a precision.

        Args:
            precision: `fp32` or `fp16`.
        """
        if precision not in self._copies:
            fp32 = precision == "fp32"
            self._copies[precision] = (
                components.meta_copy(self._plan.model)
                if fp32
                else fp16_copy(self.of("fp32"), read_fp32_modules(self._plan))
            )
        return self._copies[precision]


def weights(plan: BuildPlan, copies: MetaCopies) -> list[Artifact]:
    """Return the weights files of every precision.

    Args:
        plan: the build.
        copies: copies of its model, which give the dtypes.
    """
    files = {weights_file(p, graph): (p, file) for p in plan.options.precisions for graph, file in _graphs(plan)}
    return [
        Artifact(
            name, _inputs(plan, precision), writes(_write_weights, plan, copies, precision, file), _needs(precision)
        )
        for name, (precision, file) in files.items()
    ]


def graphs(plan: BuildPlan, copies: MetaCopies) -> list[Artifact]:
    """Return the ONNX graphs of every precision, in the order in which they are traced, several at a time.

    Args:
        plan: the build. Its weights files must be finished when a graph is made: graphs hold offsets into them.
        copies: copies of its model, which are traced.
    """
    jobs = [
        TraceJob(
            graph_file(precision, graph),
            precision,
            graph,
            plan.cache.path(graph_file(precision, graph)),
            plan.cache.path(weights_file(precision, graph)),
            trace.OPSETS[precision],
        )
        for graph, _ in sorted(_graphs(plan), key=lambda item: SLOWEST.index(item[0]))
        for precision in plan.options.precisions
    ]
    maker = partial(_trace, plan.options.workers, copies, jobs)
    return [
        Artifact(
            job.name,
            {**_inputs(plan, job.precision), "opset": job.opset, "torch": torch.__version__},
            maker,
            _needs(job.precision),
        )
        for job in jobs
    ]


def conditions_of(plan: BuildPlan) -> list[Artifact]:
    """Return the file of each condition's values.

    Args:
        plan: the build, whose model is simplified.
    """
    shared = {"model": plan.inputs["checkpoint"], "sources": plan.inputs["sources"]}
    return [
        Artifact(
            condition_file(condition),
            {
                **shared,
                "prototype": hash_tensors({condition: plan.model.prototypes[condition]}),
                "share": plan.model.share(condition),
            },
            writes(condition_files.write_condition, plan.model, condition),
        )
        for condition in plan.conditions
    ]


def _graphs(plan: BuildPlan) -> list[tuple[str, str]]:
    return list(components.graphs_of(plan.model).items())


def _inputs(plan: BuildPlan, precision: str) -> dict[str, object]:
    return {**plan.inputs, "precision": precision}


def _needs(precision: str) -> tuple[str, ...]:
    return (FP32_MODULES,) if precision == "fp16" else ()


def _write_weights(plan: BuildPlan, copies: MetaCopies, precision: str, file: str, path: Path) -> Facts:
    return trace.write_weights(plan.model, copies.of(precision), file, path)


def _trace(
    workers: int, copies: MetaCopies, jobs: Sequence[TraceJob], paths: Mapping[str, Path]
) -> Generator[tuple[str, Facts], None, None]:
    stale = [replace(job, path=paths[job.name]) for job in jobs if job.name in paths]
    models = {precision: copies.of(precision) for precision in {job.precision for job in stale}}
    for job, seconds in progress(trace_all(models, stale, workers), len(stale), "tracing"):
        yield job.name, {"seconds": seconds}
