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
    the system tells, else its resident set, in which pages of files that are only mapped count fully.
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
            self.peak = max(self.peak, sum(_held(process) for process in (self._process, *_children(self._process))))
            if self._done.wait(self._period):
                return


def give_back() -> None:
    """Hand freed memory back to the system. glibc keeps it wherever something above it is still in use: weights of tens
    of MB each, freed one session after the other, would stay with the process."""
    gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries do it by themselves
        ctypes.CDLL(None).malloc_trim(0)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _held(process: psutil.Process) -> int:
    """Bytes held by one process, 0 where it has just ended."""
    with suppress(psutil.Error):
        full = process.memory_full_info()
        return int(getattr(full, "pss", 0) or full.rss)
    return 0
