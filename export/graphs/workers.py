"""Graphs traced side by side, in worker processes that hold the model's structure but none of its values."""

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


@dataclass(frozen=True)
class TraceJob:
    """One graph to trace to `path`; its weights lie in `weights`, in the folder that the finished graph will be in."""

    name: str
    precision: str
    graph: str
    path: Path
    weights: Path
    opset: int


def trace_all(
    meta_copies: Mapping[str, DOD], jobs: Sequence[TraceJob], workers: int
) -> Iterator[tuple[TraceJob, float]]:
    """Trace every job, at most `workers` at once; yields each job with its seconds as it is done.

    skeletons: the model of each precision, see `plans.skeleton`.

    Leaving the generator early ends the workers. Raises what a worker raised, GraphError where one is ended.
    """
    workers = min(workers, len(jobs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # The structure goes with each job: handed to a starting process it would keep this one waiting, deaf to Ctrl-C.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (threads,))
    try:
        for traced in as_completed([pool.submit(_trace, meta_copies[job.precision], job) for job in jobs]):
            yield traced.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise GraphError(
            "a tracing process was ended from outside or could not start: with too little memory --workers 1 "
            "takes less; the same command goes on from what is finished"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):  # a shutdown alone would wait for what they are at
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _trace(meta_copy: DOD, job: TraceJob) -> tuple[TraceJob, float]:
    start = time.monotonic()
    trace(meta_copy, job.graph, job.path, job.weights, job.opset)
    return job, time.monotonic() - start
