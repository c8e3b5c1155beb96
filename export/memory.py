"""How much memory a build or another process takes: all of its processes together, sampled while it runs."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from types import TracebackType

import psutil

PERIOD_SECONDS = 0.5


class MemoryMeter:
    """Samples the memory of a process and its children in a `with` block; `peak` is the largest sum, in bytes.

    process: by default this one. Counted is what each process holds alone and its share of what it shares (PSS) where
    the system tells, else its resident set, in which pages of files that are only mapped count fully. The system walks
    through all pages for a share, so it is asked only where the resident sets, which are more, exceed the peak so far.
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
    """Hand freed memory back to the system. glibc keeps it wherever something above it is still in use: weights of tens
    of MB each, freed one session after the other, would stay with the process."""
    gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries do it by themselves
        ctypes.CDLL(None).malloc_trim(0)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _resident(process: psutil.Process) -> int:
    """Bytes of its resident set, 0 where it has just ended."""
    with suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def _held(process: psutil.Process) -> int:
    """Bytes held by one process, 0 where it has just ended."""
    with suppress(psutil.Error):
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.rss)
    return 0
