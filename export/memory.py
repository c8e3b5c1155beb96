"""Memory of a build: the peak of all of its processes, and the release of what was freed."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from types import TracebackType

import psutil

__all__ = ["MemoryMeter", "release_memory"]

PERIOD_SECONDS = 0.5


class MemoryMeter:
    """Samples the memory of a process and its children in a `with` block.

    Each process counts with its private memory and its share of shared memory (PSS) where the system states it, else
    with its resident set, in which every page of a mapped file counts fully. The system walks through all pages for the
    share, so it is asked only while the resident sets, which are larger, exceed the peak.

    Args:
        process: by default this one.
        period: seconds between two samples.

    Attributes:
        peak: the largest sum so far, in bytes.
    """

    def __init__(self, process: psutil.Process | None = None, period: float = PERIOD_SECONDS) -> None:
        self.peak = 0
        self._process, self._period = process or psutil.Process(), period
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory meter", daemon=True)

    def __enter__(self) -> MemoryMeter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            processes = (self._process, *_children(self._process))
            if sum(map(_resident, processes)) > self.peak:
                self.peak = max(self.peak, sum(map(_held, processes)))
            if self._done.wait(self._period):
                return


def release_memory() -> None:
    """Return freed memory to the system.

    glibc keeps a freed block while a later one is in use: weights of tens of MB each, freed one session after the
    other, would stay with the process.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries do it by themselves
        ctypes.CDLL(None).malloc_trim(0)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _resident(process: psutil.Process) -> int:
    """Return the bytes of a process's resident set, 0 if it has just ended."""
    with suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def _held(process: psutil.Process) -> int:
    """Return the bytes that one process holds, 0 if it has just ended."""
    with suppress(psutil.Error):
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.rss)
    return 0
