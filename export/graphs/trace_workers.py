"""Parallel tracing in worker processes, which hold the model's structure but none of its values."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from dod.model.dod import DOD
from export.errors import GraphError
from export.graphs.trace import trace

__all__ = ["TraceJob", "trace_all"]


@dataclass(frozen=True)
class TraceJob:
    """One graph to trace.

    Attributes:
        name: Name of the finished file in the bundle.
        precision: `fp32` or `fp16`.
        graph: One of `export.graphs.components.GRAPHS`.
        path: ONNX file to write.
        weights: Weights file, in the folder of the finished graph.
        opset: ONNX opset.
    """

    name: str
    precision: str
    graph: str
    path: Path
    weights: Path
    opset: int


def trace_all(
    meta_copies: Mapping[str, DOD], jobs: Sequence[TraceJob], workers: int
) -> Iterator[tuple[TraceJob, float]]:
    """Trace several graphs in parallel. Closing the generator early ends the workers.

    Args:
        meta_copies: The model of each precision, see `export.graphs.components.meta_copy`.
        jobs: Graphs to trace, in the order in which they start.
        workers: Maximum number of processes.

    Yields:
        Each job and its seconds, as soon as it is done.

    Raises:
        GraphError: If a trace is refused, or if a worker is killed from outside.
    """
    workers = min(workers, len(jobs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Each job carries the structure: as an argument of the processes it would block this one, deaf to Ctrl-C.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (threads,))
    try:
        for traced in as_completed([pool.submit(_trace, meta_copies[job.precision], job) for job in jobs]):
            yield traced.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise GraphError(
            "a tracing process was killed or could not start: if memory ran out, --workers 1 takes less; "
            "the same command resumes from the finished files"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):  # shutdown alone waits for the running jobs
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _trace(meta_copy: DOD, job: TraceJob) -> tuple[TraceJob, float]:
    start = time.monotonic()
    trace(meta_copy, job.graph, job.path, job.weights, job.opset)
    return job, time.monotonic() - start
