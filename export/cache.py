"""What a build makes, kept by what it was made from: a build resumes, and says why each file is fresh or stale."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dod_runtime.bundle.bundle import MANIFEST, Bundle, hash_file
from dod_runtime.bundle.write import write_bundle
from dod_runtime.errors import UsageError
from dod_runtime.files import current_umask, follows_umask

Inputs = Mapping[str, Any]
Ahead = dict[Path, Future[tuple[list[int], str]]]
"""For each file a mark of what was hashed, and its hash."""


@dataclass(frozen=True)
class Entry:
    """A finished file: what it was made from, what is worth knowing of it, its size, hash, and seconds it took.

    mark: what tells on this disk that it is still what was hashed, see `_mark`.
    """

    inputs: dict[str, Any]
    bytes: int
    sha256: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    mark: list[int] = field(default_factory=list)


CLOCK_NS = 20_000_000
"""In how coarse steps a file system may count the time of a change."""


class BuildCache:
    """The folder `<destination>.partial` beside a bundle: finished files wait there until the bundle is whole.

    A file of an interrupted build, or of the bundle that is there already, is taken over where it was made from the
    same inputs and is intact: by its inode, size and time of change, and where these are not as a build left them, in a
    bundle that was copied, by its hash. Work is done in a `with` block, one process at a time: UsageError where another
    is at it. A block that made nothing leaves the disk as it was found.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.root = destination.with_name(f"{destination.name}.partial")
        self.folder = self.root / "files"
        self._ledger = self.root / "ledger.json"
        self._entries = _read(self._ledger, None)
        self._before = _read(destination / MANIFEST, "build")
        self._ahead: Ahead = {}
        self._abandoned = False
        self.used: dict[str, Entry] = {}
        self.reasons: dict[str, str] = {}

    def __enter__(self) -> BuildCache:
        self._found = self.root.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(
                f"another build of {self.destination} is at work: wait for it, or name another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        for scratch in self.root.glob(f"{tempfile.gettempprefix()}*"):  # of a build that was killed
            shutil.rmtree(scratch, ignore_errors=True)
        return self

    def abandon(self) -> None:
        """Have the block leave nothing behind of what it makes. What an earlier build left to resume stays."""
        self._abandoned = True

    def __exit__(self, *_: object) -> None:
        if not self._found and (self._abandoned or not self._ledger.exists()):
            shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)

    def hash_ahead(self) -> None:
        """Begin to hash, in a thread, what may be taken over: a model of gigabytes is loaded and hashed meanwhile."""
        both = ((self._entries, self.folder), (self._before, self.destination))
        paths = {folder / name: entry.mark for entries, folder in both for name, entry in entries.items()}
        self._ahead = {path: Future() for path, mark in paths.items() if path.is_file() and _mark(path) != mark}
        threading.Thread(target=_hash_all, args=(self._ahead,), name="hashing ahead", daemon=True).start()

    def path(self, name: str) -> Path:
        """Where the file `name` of the bundle is made; its folder exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def fresh(self, name: str, inputs: Inputs) -> bool:
        """Whether `name` need not be made again. `reasons[name]` says why, or why not."""
        inputs = json.loads(json.dumps(inputs))
        reason = "not built yet"
        for entries, folder in ((self._entries, self.folder), (self._before, self.destination)):
            entry = entries.get(name)
            if entry is None:
                continue
            changed = _difference(entry.inputs, inputs)
            if changed:
                reason = changed
            elif not self._intact(folder / name, entry):
                reason = "the file is missing or was changed"
            else:
                if folder != self.folder:
                    _adopt(folder / name, self.path(name))
                self.used[name] = replace(entry, mark=_lasting_mark(self.path(name)))
                self.reasons[name] = f"fresh: same inputs ({', '.join(inputs)})"
                return True
        self.reasons[name] = f"stale: {reason}"
        return False

    def _intact(self, path: Path, entry: Entry) -> bool:
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return False
        if _mark(path) == entry.mark:
            return True
        ahead = self._ahead.get(path)
        if ahead is not None and not ahead.cancel():  # it was begun
            mark, sha256 = ahead.result()
            if mark == _mark(path):
                return sha256 == entry.sha256
        return hash_file(path) == entry.sha256

    def record(self, name: str, inputs: Inputs, seconds: float, facts: Mapping[str, Any] | None = None) -> Entry:
        """Note that `name` is finished. facts: `sha256` among them spares reading the file again."""
        path, facts = self.folder / name, dict(facts or {})
        mark = _lasting_mark(path)
        sha256 = facts.pop("sha256", None) or hash_file(path)
        made_from, size = json.loads(json.dumps(inputs)), path.stat().st_size
        entry = Entry(made_from, size, sha256, round(seconds, 2), facts, mark)
        self._entries[name] = self.used[name] = entry
        temporary = self._ledger.with_suffix(".tmp")
        temporary.write_text(json.dumps({name: asdict(entry) for name, entry in self._entries.items()}, indent=1))
        os.replace(temporary, self._ledger)
        return entry

    def make(self, name: str, inputs: Inputs, maker: Callable[[Path], Mapping[str, Any] | None]) -> tuple[Entry, bool]:
        """Make `name` where it is stale, with `maker(temporary path)`; returns its entry and whether it was made."""
        if self.fresh(name, inputs):
            return self.used[name], False
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.tmp")
        start = time.monotonic()
        try:
            facts = maker(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.record(name, inputs, time.monotonic() - start, facts), True

    def finish(self, manifest: Mapping[str, Any]) -> Bundle:
        """Turn what was used or recorded in this run into the bundle, atomically; the rest is thrown away."""
        keep = {self.folder / name for name in self.used}
        for path in [path for path in self.folder.rglob("*") if path.is_file() and path not in keep]:
            path.unlink()
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        files = {name: {"key": key_of(entry.inputs)} for name, entry in self.used.items()}
        hashes = {name: entry.sha256 for name, entry in self.used.items()}
        build = {name: asdict(entry) for name, entry in self.used.items()}
        bundle = write_bundle({**manifest, "files": files, "build": build}, self.folder, self.destination, hashes)
        shutil.rmtree(self.root, ignore_errors=True)
        return bundle


def key_of(inputs: Inputs) -> str:
    """A short fingerprint of the inputs of an artefact."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def hash_sources(paths: Iterable[Path]) -> str:
    """One SHA-256 over source files, so that a change of the code makes what it built stale."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def package_sources(folder: Path) -> list[Path]:
    """Return the modules of a package and of its subpackages.

    A folder without `__init__.py` is no subpackage: `build/`, which `pip install` leaves, `dist/`, `*.egg-info/` and
    `__pycache__/` hold no source.
    """
    inside = [each for each in sorted(folder.iterdir()) if (each / "__init__.py").is_file()]
    return [*sorted(folder.glob("*.py")), *(source for each in inside for source in package_sources(each))]


def _read(path: Path, key: str | None) -> dict[str, Entry]:
    """The entries of a ledger, or of an earlier bundle's manifest; none where it is absent or damaged."""
    try:
        data = json.loads(path.read_text())
        return {name: Entry(**entry) for name, entry in (data[key] if key else data).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _hash_all(ahead: Ahead) -> None:
    for path, promised in ahead.items():
        if promised.set_running_or_notify_cancel():  # else it was asked for before its turn
            try:
                promised.set_result((_mark(path), hash_file(path)))
            except OSError:
                promised.set_result(([], ""))


def _mark(path: Path) -> list[int]:
    """What tells whether a file is the one that was hashed."""
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _lasting_mark(path: Path) -> list[int]:
    """The mark of a file that any later change gives another: it waits until the clock of the file system has gone on.
    Empty where that counts in seconds."""
    mark = _mark(path)
    changed = mark[-1]
    if changed % 10**9 == 0:
        return []
    while 0 <= time.time_ns() - changed < CLOCK_NS:
        time.sleep(CLOCK_NS / 1e9)
    return mark


def _adopt(source: Path, target: Path) -> None:
    """Link a file of the bundle before; copy it where that cannot be, or where its permissions are not the umask's: a
    link shares them with the bundle before."""
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if follows_umask(source, current_umask()):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _difference(before: Inputs, now: Inputs) -> str | None:
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old != new:
            inside = _difference(old, new) if isinstance(old, dict) and isinstance(new, dict) else None
            return f"{name}: {inside}" if inside else f"{name} was {_short(old)}, is {_short(new)}"
    return None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
