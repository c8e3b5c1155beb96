"""The bundle: a folder that holds everything a model needs to run. This module owns its format, both ways."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, unknown
from ..permissions import apply_umask, current_umask
from .merge import Places, merge, new_arrays
from .safetensors import read_tensors
from .schema import FileRecord, Manifest, Precision

__all__ = ["LEDGER", "MANIFEST", "REPORT", "Bundle", "hash_file", "write_bundle"]

MANIFEST = "bundle.json"
REPORT = "report.md"
LEDGER = "build.json"
"""The build's own ledger. The runtime does not read it."""
UNLISTED = (REPORT, LEDGER)
"""Files that the manifest does not list, beside those in the folder `report`: no restorer needs them."""
REBUILD = "rebuild with: python export/build_engines.py --out"


class Bundle:
    """An open bundle: its manifest, and its files, each verified when it is first used. Safe to share by threads.

    verified: the names of files that the caller has just hashed himself.
    """

    def __init__(self, folder: Path, manifest: Manifest, verified: Iterable[str] = ()) -> None:
        self.folder = folder
        self.manifest = manifest
        self._verified = set(verified)
        self._locks = {name: threading.Lock() for name in manifest.files}

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, name={self.manifest.name!r})"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Opens the bundle in the folder `path`.

        Reads the manifest and sees that every file is there in its size; contents are hashed at first use.
        Raises BundleError for a folder that is no bundle, a newer schema, a malformed manifest or a missing file.
        """
        folder = Path(path)
        try:
            text = (folder / MANIFEST).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(_not_a_bundle(folder, error)) from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{folder / MANIFEST} is not JSON ({error}); {REBUILD} {folder}") from error
        bundle = cls(folder, Manifest.parse(data))
        for name, record in bundle.manifest.files.items():
            bundle._check_size(name, record)
        return bundle

    def path(self, name: str) -> Path:
        """The file `name` of the bundle, its size and SHA-256 verified; for a graph, its weights too.

        Raises BundleError where the file is missing or was changed, or where the bundle never had it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no file {name}; it has {', '.join(sorted(self.manifest.files))}")
        for each in (name, *self._weights_of(name)):
            self._verify(each)
        return self.folder / name

    def hash_ahead(self, name: str) -> None:
        """Begins to verify a file as `path` does, in a thread; who asks for its path waits for that, and is told."""
        threading.Thread(target=self._path_or_none, args=(name,), name="dod-hashing", daemon=True).start()

    def _path_or_none(self, name: str) -> None:
        with suppress(BundleError):
            self.path(name)

    def verify(self) -> None:
        """Hashes every file now. Raises BundleError at the first that is missing or changed."""
        for name in self.manifest.files:
            self._verify(name)

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of a safetensors file of the bundle, verified, as read-only memory maps."""
        return read_tensors(self.path(name))

    def modulation(self, condition: str) -> np.ndarray:
        """gamma and beta at the prototype of a condition: float32 [N, 2, r]. Raises UsageError for an unknown one."""
        return self.values(condition)["modulation"]

    def values(self, condition: str) -> dict[str, np.ndarray]:
        """The values of a named condition, float32, by name.

        `modulation` [N, 2, r], gamma and beta at its prototype. Where the model has a gate also `condition` [C], the
        prototype itself, and `share` [1] in 0 to 1: the share of every image that passes the model on this path. Raises
        UsageError for an unknown condition, BundleError where its file does not hold them.
        """
        if condition not in self.manifest.conditions:
            raise unknown("condition", condition, self.manifest.conditions)
        name = self.manifest.conditions[condition]
        tensors = self.tensors(name)
        outputs = {spec.name: spec.shape[1:] for spec in self.manifest.components["mfm"].outputs}
        shapes: dict[str, tuple[Any, ...] | None] = {"modulation": outputs.get("modulation")}
        if self.manifest.gated:
            shapes |= {"condition": outputs.get("condition"), "share": (1,)}
        for key, shape in shapes.items():
            value = tensors.get(key)
            if value is None or value.dtype != np.float32 or (shape is not None and value.shape != shape):
                found = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                expected = f"float32 {list(shape)}" if shape is not None else "float32 [N, 2, r]"
                raise BundleError(f"{self.folder / name} must hold {key!r} as {expected}, found {found}")
        if "share" in shapes and not 0 <= tensors["share"][0] <= 1:
            raise BundleError(f"{self.folder / name}: the share {tensors['share'][0]} is not between 0 and 1")
        return {key: tensors[key] for key in shapes}

    def merged(self, files: Precision, condition: str, places: Places = new_arrays) -> dict[str, np.ndarray]:
        """What a condition changes in the merged UNet of a precision, by name, computed from the stored weights.

        These are hashed meanwhile, and their memory map ends with this call. places: gives the arrays that are
        returned. Raises BundleError where they were changed or do not fit, UsageError for an unknown condition, and
        what `places` raises.
        """
        modulation, name = self.modulation(condition), files.weights["unet_merged"]
        self.hash_ahead(name)
        try:
            merged = merge(read_tensors(self.folder / name), self.manifest.merge, modulation, places)
        except BundleError:
            self._verify(name)  # a file that was changed says so, whatever came of merging it
            raise
        self._verify(name)
        return merged

    def _weights_of(self, graph: str) -> list[str]:
        """The safetensors files that hold the external data of a graph."""
        return [
            precision.weights[component]
            for precision in self.manifest.precisions.values()
            for component, path in precision.onnx.items()
            if path == graph
        ]

    def _check_size(self, name: str, record: FileRecord) -> None:
        path = self.folder / name
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError:
            size = None
        if size is None:
            raise BundleError(f"{self.folder} lacks the file {name}; {REBUILD} {self.folder}")
        if size != record.bytes:
            raise BundleError(f"{path} has {size} bytes, expected {record.bytes}; {REBUILD} {self.folder}")

    def _verify(self, name: str) -> None:
        with self._locks[name]:
            if name in self._verified:
                return
            record = self.manifest.files[name]
            self._check_size(name, record)
            try:
                found = hash_file(self.folder / name)
            except OSError as error:
                raise BundleError(f"cannot read {self.folder / name}: {error.strerror or error}") from error
            if found != record.sha256:
                raise BundleError(
                    f"{self.folder / name} was changed: expected SHA-256 {record.sha256}, found {found}; "
                    f"{REBUILD} {self.folder}"
                )
            self._verified.add(name)


def _not_a_bundle(folder: Path, error: Exception) -> str:
    if not folder.exists():
        return f"no such bundle: {folder}; build it with: python export/build_engines.py --out {folder}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{folder} is not a bundle: it has no {MANIFEST}"
    return f"cannot read {folder / MANIFEST}: {getattr(error, 'strerror', None) or error}"


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bundle(
    manifest: Mapping[str, Any], staging: Path, destination: Path, hashes: Mapping[str, str] | None = None
) -> Bundle:
    """Turns the folder `staging` into the bundle `destination` and opens it.

    `manifest` is the content of `bundle.json` without `files`: sizes and hashes of the files in `staging` are computed
    here, apart from those of `UNLISTED`. hashes: the SHA-256 of files that were hashed when they were written.
    `staging` must be on the disk of `destination` (a folder beside it is best) and is gone afterwards. A bundle of
    before is replaced whole: there is never a bundle that is half of each. Every file and folder gets the permissions
    that the umask allows.
    Raises BundleError where the manifest does not pass, or where `destination` is something other than a bundle.
    """
    staging, destination = Path(staging), Path(destination)
    if destination.exists() and not _replaceable(destination):
        raise BundleError(f"{destination} exists and is not a bundle: move it away or choose another folder")
    (staging / MANIFEST).unlink(missing_ok=True)
    names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if not path.is_dir())
    data = {**manifest, "files": {}}
    for name in names:
        _sync(staging / name)
        if name not in UNLISTED and not name.startswith("report/"):
            sha256 = (hashes or {}).get(name) or hash_file(staging / name)
            data["files"][name] = {"bytes": (staging / name).stat().st_size, "sha256": sha256}
    Manifest.parse(data)
    with open(staging / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
    umask = current_umask()
    for path in [*staging.rglob("*"), staging]:
        apply_umask(path, umask)
    for path in [staging / MANIFEST, *(path for path in staging.rglob("*") if path.is_dir()), staging]:
        _sync(path)
    _swap(staging, destination)
    return Bundle.open(destination)


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))


def _swap(staging: Path, destination: Path) -> None:
    """Renames the old bundle away and the new one into its place; puts the old one back where that fails."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    old = destination.with_name(f".{destination.name}.old-{os.getpid()}")
    had_one = destination.exists()
    if had_one:
        os.rename(destination, old)
    try:
        os.rename(staging, destination)
    except BaseException as error:
        if had_one:
            os.rename(old, destination)
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            raise BundleError(f"{staging} and {destination} must be on the same disk") from error
        raise
    _sync(destination.parent)
    if had_one:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or the entries of a folder are on the disk; Windows cannot do it for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
