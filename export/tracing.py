"""Graphs traced side by side: each worker process loads the model once and is given one graph after the other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dod.checkpoint import load_model
from dod.model import DOD
from export.graphs import trace
from export.precision import half_copy


@dataclass(frozen=True)
class Source:
    """What `dod.checkpoint.load_model` needs, and which modules stay in float32 where the precision is fp16."""

    checkpoint: str
    base: str | None
    ddpm: str | None
    islands: tuple[str, ...]

    def load(self, precision: str) -> DOD:
        """The model in `precision` ("fp32" or "fp16")."""
        model = load_model(self.checkpoint, self.base, self.ddpm)
        return half_copy(model, self.islands) if precision == "fp16" else model


@dataclass(frozen=True)
class TraceJob:
    """One graph to trace to `path`; its weights lie in `weights`, in the folder that the finished graph will be in."""

    name: str
    precision: str
    graph: str
    path: Path
    weights: Path
    opset: int


_source: Source
_models: dict[str, DOD] = {}


def trace_all(source: Source, jobs: Sequence[TraceJob], workers: int) -> Iterator[tuple[TraceJob, float]]:
    """Trace every job, at most `workers` at once; yields each job with its seconds as it is done.

    Leaving the generator early ends the workers. Raises what a worker raised.
    """
    workers = min(workers, len(jobs))
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start, (source, max(1, (os.cpu_count() or 1) // workers))) as pool:
        yield from pool.imap_unordered(_trace, jobs)


def _start(source: Source, threads: int) -> None:
    global _source
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _source = source


def _trace(job: TraceJob) -> tuple[TraceJob, float]:
    if job.precision not in _models:
        _models.clear()
        _models[job.precision] = _source.load(job.precision)
    start = time.monotonic()
    trace(_models[job.precision], job.graph, job.path, job.weights, job.opset)
    return job, time.monotonic() - start
