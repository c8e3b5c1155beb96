"""The build's ledger, `build.json` beside `bundle.json`: for each file its inputs, hash, and the time it took.

The runtime does not read it. Without it a bundle is complete, and the next build makes every file again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dod_runtime.bundle.bundle import LEDGER, hash_file
from dod_runtime.files import atomic_write

__all__ = [
    "LEDGER",
    "BackgroundHashes",
    "CacheEntry",
    "difference",
    "file_state",
    "lasting_state",
    "read_ledger",
    "write_ledger",
]

CLOCK_NS = 20_000_000
"""Longest step, in nanoseconds, in which a file system counts the time of a change."""


@dataclass(frozen=True)
class CacheEntry:
    """A finished file of a build.

    Attributes:
        inputs: JSON of what the file was made from.
        bytes: its size.
        sha256: its SHA-256 in hexadecimal.
        seconds: the time that making it took.
        facts: JSON of further results of making it.
        state: `file_state` when it was hashed. While it does not change, the file need not be hashed again.
    """

    inputs: dict[str, Any]
    bytes: int
    sha256: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    state: list[int] = field(default_factory=list)


def read_ledger(path: Path) -> dict[str, CacheEntry]:
    """Return the entries of a ledger by file name, none if it is missing or damaged.

    Args:
        path: the ledger, a JSON file.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        return {name: CacheEntry(**entry) for name, entry in data["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_ledger(path: Path, entries: Mapping[str, CacheEntry]) -> None:
    """Write a ledger, replacing an earlier one atomically.

    Args:
        path: the ledger.
        entries: its entries by file name.
    """
    data = {"files": {name: asdict(entry) for name, entry in sorted(entries.items())}}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def file_state(path: Path) -> list[int]:
    """Return the inode, size and modification time (ns) of a file: another state means that it may have changed.

    Args:
        path: the file.
    """
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def lasting_state(path: Path) -> list[int]:
    """Return the state of a file after waiting until any later change would give it another one.

    The wait, at most 20 ms, ends when the clock of the file system has moved on.

    Args:
        path: a file that nothing writes to at present.

    Returns:
        See `file_state`; empty on file systems that count in seconds, where no state can be trusted.
    """
    state = file_state(path)
    changed = state[-1]
    if changed % 10**9 == 0:
        return []
    while 0 <= time.time_ns() - changed < CLOCK_NS:
        time.sleep(CLOCK_NS / 1e9)
    return state


class BackgroundHashes:
    """SHA-256 of files, computed in a thread while the build loads its model, which may take minutes.

    Args:
        paths: files that will be asked for.
    """

    THREAD = "background hashes"

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._futures: dict[Path, Future[tuple[list[int], str]]] = {path: Future() for path in paths}
        if self._futures:
            threading.Thread(target=self._run, name=self.THREAD, daemon=True).start()

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, from the thread where it hashed the file as it is now.

        Args:
            path: any file.
        """
        future = self._futures.get(path)
        if future is not None and not future.cancel():  # the thread has begun with it
            state, sha256 = future.result()
            if state == file_state(path):
                return sha256
        return hash_file(path)

    def _run(self) -> None:
        for path, future in self._futures.items():
            if future.set_running_or_notify_cancel():  # otherwise it was asked for earlier
                try:
                    future.set_result((file_state(path), hash_file(path)))
                except OSError:
                    future.set_result(([], ""))


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe the first difference of two sets of inputs.

    Args:
        before: inputs of the file that exists, for JSON.
        now: inputs of the file that is wanted.

    Returns:
        The key with both values, shortened; None if the inputs are equal.

    Example:
        >>> difference({"size": {"max": 512}}, {"size": {"max": 1024}})
        'size: max was 512, is 1024'
    """
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old != new:
            inside = difference(old, new) if isinstance(old, dict) and isinstance(new, dict) else None
            return f"{name}: {inside}" if inside else f"{name} was {_shortened(old)}, is {_shortened(new)}"
    return None


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
