"""The build cache: makes the files of a bundle that are missing or stale, so that an interrupted build resumes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from dod_runtime.bundle.bundle import LEDGER, REPORT, Bundle
from dod_runtime.bundle.write import write_bundle
from dod_runtime.errors import UsageError
from dod_runtime.files import current_umask, follows_umask
from export.ledger import (
    BackgroundHashes,
    CacheEntry,
    difference,
    file_state,
    lasting_state,
    read_ledger,
    write_ledger,
)

__all__ = ["Artifact", "BuildCache", "Facts", "Inputs", "Maker", "writes"]

Inputs = Mapping[str, Any]
"""Values that decide the content of a file, for JSON."""
Facts = Mapping[str, Any]
"""Results of making a file, for JSON. `sha256` saves reading the file again; `seconds` replaces the measured time."""
Maker = Callable[[Mapping[str, Path]], Generator[tuple[str, Facts], None, None]]
"""Function that takes the paths to write, by file name, and yields the name and facts of each file once it is whole."""


@dataclass(frozen=True)
class Artifact:
    """A file of a bundle, and how to make it.

    Attributes:
        name: path of the file in the bundle.
        inputs: values that decide its content, apart from `needs`.
        make: function that writes it. Consecutive artifacts with the same `make` are written by one call, which may run
            in parallel.
        needs: names of the artifacts whose content decides its own; they come earlier in the build.
    """

    name: str
    inputs: Inputs
    make: Maker
    needs: tuple[str, ...] = ()


def writes(function: Callable[..., Facts | None], *args: Any) -> Maker:
    """Return a maker of one file.

    Args:
        function: called as `function(*args, path)`; writes the file and may return facts.
        *args: its first arguments.
    """

    def make(paths: Mapping[str, Path]) -> Generator[tuple[str, Facts], None, None]:
        for name, path in paths.items():
            yield name, function(*args, path) or {}

    return make


class BuildCache:
    """The folder `<destination>.partial`, in which finished files wait until the bundle is whole.

    A file of an interrupted build, or of the bundle at the destination, is taken over if it was made from the same
    inputs and is intact. Files are made in a `with` block, by one process at a time. A block that made nothing leaves
    the disk as it was.

    Args:
        destination: the bundle's folder.

    Attributes:
        folder: holds the files of the bundle to be.
        scratch: folder for temporary files, on the same disk.
        used: entries of the files that are cached or were made, by name.
        reasons: for each artifact that was looked up, why it is cached or stale.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.scratch = destination.with_name(f"{destination.name}.partial")
        self.folder = self.scratch / "files"
        self.used: dict[str, CacheEntry] = {}
        self.reasons: dict[str, str] = {}
        self._entries = read_ledger(self.scratch / LEDGER)
        self._earlier = read_ledger(destination / LEDGER)
        self._hashes = BackgroundHashes()
        self._abandoned = False

    def __enter__(self) -> BuildCache:
        self._existed = self.scratch.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.scratch, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(
                f"another process builds {self.destination}: wait for it to end, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        for leftover in self.scratch.glob(f"{tempfile.gettempprefix()}*"):  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._existed and (self._abandoned or not (self.scratch / LEDGER).exists()):
            shutil.rmtree(self.scratch, ignore_errors=True)
        os.close(self._lock)

    def abandon(self) -> None:
        """Delete the files that the `with` block makes at its end. Those of an earlier build stay."""
        self._abandoned = True

    def hash_ahead(self) -> None:
        """Start hashing, in a thread, the files that may be reused and whose state differs from the recorded one."""
        both = ((self._entries, self.folder), (self._earlier, self.destination))
        paths = {folder / name: entry.state for entries, folder in both for name, entry in entries.items()}
        changed = [path for path, state in paths.items() if path.is_file() and file_state(path) != state]
        self._hashes = BackgroundHashes(changed)

    def path(self, name: str) -> Path:
        """Return the path of a file of the bundle to be. Its folder exists.

        Args:
            name: path of the file in the bundle.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def is_cached(self, artifact: Artifact) -> bool:
        """Return True if the artifact need not be made, and take its file over. `reasons` says why it is stale.

        Args:
            artifact: its `needs` must have been looked up or made before.
        """
        name, missing = artifact.name, next((each for each in artifact.needs if each not in self.used), None)
        inputs = {} if missing else self._inputs(artifact)
        reason = f"made from {missing}, which is stale" if missing else self._take_over(name, inputs)
        self.reasons[name] = f"stale: {reason}" if reason else f"cached: same inputs ({', '.join(inputs)})"
        return reason is None

    def make(self, artifacts: Iterable[Artifact]) -> Iterator[tuple[str, CacheEntry]]:
        """Make the stale artifacts. A file that is interrupted while it is written never appears under its name.

        Args:
            artifacts: artifacts, each after those that it needs.

        Yields:
            The name and entry of each file that was made, once it is in its place.
        """
        for maker, group in groupby(artifacts, key=lambda each: each.make):
            stale = {each.name: each for each in group if not self.is_cached(each)}
            paths = {name: _temporary(self.path(name)) for name in stale}
            start = time.monotonic()
            try:
                with contextlib.closing(maker(paths)) if stale else contextlib.nullcontext(()) as finished:
                    for name, facts in finished:
                        os.replace(paths[name], self.path(name))
                        yield name, self._record(stale[name], facts, time.monotonic() - start)
                        start = time.monotonic()
            finally:
                for path in paths.values():
                    path.unlink(missing_ok=True)

    def finish(self, manifest: Mapping[str, Any]) -> Bundle:
        """Turn the used files into the bundle, atomically, with the ledger beside its manifest. Others are deleted.

        Args:
            manifest: content of `bundle.json` without its `files`.

        Returns:
            The open bundle.
        """
        kept = {self.folder / name for name in (*self.used, REPORT)}
        for path in [path for path in self.folder.rglob("*") if path.is_file() and path not in kept]:
            path.unlink()
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        write_ledger(self.folder / LEDGER, self.used)
        hashes = {name: entry.sha256 for name, entry in self.used.items()}
        bundle = write_bundle(manifest, self.folder, self.destination, hashes)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return bundle

    def _inputs(self, artifact: Artifact) -> dict[str, Any]:
        """Return the inputs of an artifact with the hashes of the files that it needs, converted to JSON and back."""
        needed = {"files": {name: self.used[name].sha256 for name in artifact.needs}} if artifact.needs else {}
        return json.loads(json.dumps({**artifact.inputs, **needed}))

    def _take_over(self, name: str, inputs: Inputs) -> str | None:
        """Use the file of this build or of the earlier bundle. Return the reason if neither is valid, else None."""
        reason = "not built yet"
        for entries, folder in ((self._entries, self.folder), (self._earlier, self.destination)):
            entry = entries.get(name)
            if entry is None:
                continue
            changed = difference(entry.inputs, inputs)
            if changed:
                reason = changed
            elif not self._is_intact(folder / name, entry):
                reason = "the file is missing or was changed"
            else:
                if folder != self.folder:
                    _link_or_copy(folder / name, self.path(name))
                self.used[name] = replace(entry, state=lasting_state(self.path(name)))
                return None
        self.used.pop(name, None)
        return reason

    def _is_intact(self, path: Path, entry: CacheEntry) -> bool:
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return False
        return file_state(path) == entry.state or self._hashes.sha256(path) == entry.sha256

    def _record(self, artifact: Artifact, facts: Facts, seconds: float) -> CacheEntry:
        path, kept = self.folder / artifact.name, dict(facts)
        state = lasting_state(path)
        sha256 = kept.pop("sha256", None) or self._hashes.sha256(path)
        seconds = round(kept.pop("seconds", seconds), 2)
        entry = CacheEntry(self._inputs(artifact), path.stat().st_size, sha256, seconds, kept, state)
        self._entries[artifact.name] = self.used[artifact.name] = entry
        write_ledger(self.scratch / LEDGER, self._entries)
        return entry


def _temporary(path: Path) -> Path:
    """Return the temporary name of a file, in its own folder: graphs refer to weights beside them."""
    return path.with_name(f".{path.stem}.tmp{path.suffix}")


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a file of the earlier bundle. Copies it across disks, and where its permissions, which a link would share
    with that bundle, are not those of the umask."""
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if follows_umask(source, current_umask()):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
