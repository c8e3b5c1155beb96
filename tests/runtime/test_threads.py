"""Work on several threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from dod_runtime.threads import MAX_THREADS, for_each


def test_each_item_is_handled_once() -> None:
    done: list[int] = []
    names: set[int] = set()

    def work(item: int) -> None:
        done.append(item)
        names.add(threading.get_ident())

    for_each(work, range(100))
    assert sorted(done) == list(range(100)) and len(names) <= MAX_THREADS
    for_each(work, ())


def test_the_first_error_is_raised_and_ends_the_work() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        done.append(item)
        if item == 5:
            raise LookupError(f"item {item}")

    with pytest.raises(LookupError, match="item 5"):
        for_each(work, range(10_000))
    assert len(done) < 10_000


def test_it_works_after_the_main_thread_has_ended() -> None:
    code = """
import threading
from dod_runtime.threads import for_each

def late():
    threading.main_thread().join()
    done = []
    for_each(done.append, range(3))
    print(*done)

threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["0", "1", "2"]
