"""Processes of a distributed run: which one prints and writes, means over all of them, and their end on SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

__all__ = [
    "any_process",
    "end_workers",
    "ignore_sigterm",
    "is_main_process",
    "mean_over_processes",
    "process",
    "say",
    "sigterm_flag",
]


def process() -> PartialState:
    """Return the state of this process in its group, as `accelerate launch` or `torchrun` started it."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """Return True in the process that prints and writes."""
    return process().is_main_process


def say(text: str) -> None:
    """Print a line, in the main process only.

    Args:
        text: the line.
    """
    if is_main_process():
        print(text)


def mean_over_processes(accelerator: Accelerator, value: float) -> float:
    """Return the mean of a value over all processes.

    Args:
        accelerator: accelerator of the run.
        value: value of this process.

    Returns:
        The mean, equal in all processes.
    """
    if accelerator.num_processes == 1:
        return value
    gathered: Any = accelerator.gather(torch.tensor([value], device=accelerator.device))
    return float(gathered.mean())


def any_process(accelerator: Accelerator, value: bool) -> bool:
    """Return True if a flag is set in any process, so that all of them stop after the same step.

    Args:
        accelerator: accelerator of the run.
        value: flag of this process.

    Returns:
        The disjunction, equal in all processes.
    """
    if accelerator.num_processes == 1:
        return value
    gathered: Any = accelerator.gather(torch.tensor([float(value)], device=accelerator.device))
    return bool(gathered.any())


def ignore_sigterm(_: int) -> None:
    """Ignore SIGTERM in a data loader's worker process.

    The signal often goes to the whole process group. The end of a worker would break the step that is to be saved.

    Args:
        _: index of the worker.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def end_workers(batches: Iterator[Sequence[Tensor]]) -> Iterator[None]:
    """End the worker processes of a data loader when the block ends, on errors too.

    They would otherwise live as long as the iterator, which the traceback of an error keeps alive. The process would
    then wait for them at its exit forever, because they ignore SIGTERM.

    Args:
        batches: iterator of a data loader.

    Yields:
        Nothing.
    """
    try:
        yield
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)  # absent without workers
        if shut_down:
            shut_down()


@contextmanager
def sigterm_flag() -> Iterator[list[int]]:
    """Record SIGTERM instead of ending the process.

    Yields:
        A list that is not empty after the signal.
    """
    received: list[int] = []
    if current_thread() is not main_thread():  # only the main thread may set a handler
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
