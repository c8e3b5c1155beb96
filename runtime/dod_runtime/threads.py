"""Work on several threads, also while the interpreter shuts down."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["MAX_THREADS", "for_each"]

Item = TypeVar("Item")

MAX_THREADS = 4
"""Maximum number of threads. Merging, the main use, is memory-bound; more do not help."""


def for_each(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call a function with each item on up to `MAX_THREADS` threads, one of them the caller's, and wait for all.

    A `ThreadPoolExecutor` accepts no work once the main thread has ended, while other threads may go on restoring.

    Args:
        work: function to call. Calls begin in the order of the items.
        items: its arguments.

    Raises:
        BaseException: the first error of `work`, after all threads have stopped. Items that are left are skipped.
    """
    left, lock = deque(items), threading.Lock()
    failed: list[BaseException] = []

    def take() -> None:
        while not failed:
            with lock:
                if not left:
                    return
                item = left.popleft()
            try:
                work(item)
            except BaseException as error:
                failed.append(error)

    helpers = min(MAX_THREADS, os.cpu_count() or 1) - 1
    others = [threading.Thread(target=take, name="dod-opening") for _ in range(helpers)]
    for thread in others:
        thread.start()
    take()
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]
