"""Opening and verification of a bundle: the folder that holds everything a model needs to run."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, BundleNotFoundError, unknown
from .merge import Allocator, merge, new_arrays
from .safetensors import read_tensors
from .schema import FileRecord, Manifest, PrecisionFiles

__all__ = ["LEDGER", "MANIFEST", "REPORT", "Bundle", "hash_file"]

MANIFEST = "bundle.json"
"""Name of the manifest in the bundle's folder."""
REPORT = "report.md"
"""Name of the report for people."""
LEDGER = "build.json"
"""Name of the build's own ledger. The runtime does not read it."""
REBUILD = "copy the bundle again, or rebuild it with: dod-export build --out"


class Bundle:
    """An open bundle. Files are verified when they are first used. Threads may share it.

    Use `Bundle.open` to open a folder.

    Args:
        folder: folder of the bundle.
        manifest: content of its `bundle.json`.
        verified: files that need no verification because the caller has just hashed them.

    Attributes:
        folder: folder of the bundle.
        manifest: content of its `bundle.json`.
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
        """Open the bundle in a folder.

        Reads the manifest and checks the size of every file. Contents are hashed at first use.

        Args:
            path: folder of the bundle.

        Returns:
            The open bundle.

        Raises:
            BundleNotFoundError: the folder does not exist or has no `bundle.json`.
            BundleError: the manifest is not valid or of another schema, or a file is missing or has another size.
        """
        folder = Path(path)
        try:
            text = (folder / MANIFEST).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(folder, error) from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{folder / MANIFEST} is not JSON ({error}); {REBUILD} {folder}") from error
        bundle = cls(folder, Manifest.parse(data))
        for name, record in bundle.manifest.files.items():
            bundle._check_size(name, record)
        return bundle

    def path(self, name: str) -> Path:
        """Verify a file, and for a graph also the file of its weights, and return its path.

        Args:
            name: file as the manifest lists it, such as `onnx/fp32/mfm.onnx`.

        Returns:
            Path of the file.

        Raises:
            BundleError: the file is missing or damaged, or is no file of the bundle.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no file {name}; it has {', '.join(sorted(self.manifest.files))}")
        for each in (name, *self._weights_of(name)):
            self._verify(each)
        return self.folder / name

    def hash_ahead(self, name: str) -> None:
        """Start to verify a file in a thread. A later `path` waits for the result, and raises its error.

        Args:
            name: file as the manifest lists it.
        """
        threading.Thread(target=self._path_or_none, args=(name,), name="dod-hashing", daemon=True).start()

    def _path_or_none(self, name: str) -> None:
        with suppress(BundleError):
            self.path(name)

    def verify(self) -> None:
        """Hash every file now.

        Raises:
            BundleError: a file is missing or damaged.
        """
        for name in self.manifest.files:
            self._verify(name)

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Verify and read a safetensors file of the bundle.

        Args:
            name: file as the manifest lists it.

        Returns:
            Tensors by name, as read-only memory maps.

        Raises:
            BundleError: the file is missing or damaged, or is not a valid safetensors file.
        """
        return read_tensors(self.path(name))

    def modulation(self, condition: str) -> np.ndarray:
        """Return the modulation at the prototype of a condition.

        Args:
            condition: a condition of the bundle, such as `haze`.

        Returns:
            float32 `[N, 2, r]`: gamma and beta of each of the N conditional layers.

        Raises:
            UsageError: the condition is unknown.
            BundleError: its file is damaged or does not fit the model.
        """
        return self.condition_tensors(condition)["modulation"]

    def condition_tensors(self, condition: str) -> dict[str, np.ndarray]:
        """Return the tensors of a condition.

        Args:
            condition: a condition of the bundle, such as `haze`.

        Returns:
            float32 arrays by name. `modulation` `[N, 2, r]`: gamma and beta at the condition's prototype. If the model
            has a gate, also `condition` `[C]`: the prototype, and `share` `[1]`: the share in [0, 1] of every image
            that bypasses the model on the path of this condition.

        Raises:
            UsageError: the condition is unknown.
            BundleError: its file is damaged or does not fit the model.
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

    def merged(self, files: PrecisionFiles, condition: str, allocate: Allocator = new_arrays) -> dict[str, np.ndarray]:
        """Merge a condition into the stored weights of the UNet.

        The stored weights are verified meanwhile. Their memory map ends with this call.

        Args:
            files: files of the precision to merge.
            condition: a condition of the bundle, such as `haze`.
            allocate: provides the arrays of the result.

        Returns:
            The tensors of the merged UNet that the condition changes, by name.

        Raises:
            UsageError: the condition is unknown.
            BundleError: the weights are damaged or do not fit the manifest.
        """
        modulation, name = self.modulation(condition), files.weights["unet_merged"]
        self.hash_ahead(name)
        try:
            merged = merge(read_tensors(self.folder / name), self.manifest.merge, modulation, allocate)
        except BundleError:
            self._verify(name)  # a damaged file is the cause of the error, not a consequence
            raise
        self._verify(name)
        return merged

    def _weights_of(self, graph: str) -> list[str]:
        """Return the safetensors files that hold the external data of a graph."""
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


def _unreadable(folder: Path, error: Exception) -> BundleError:
    """Return the error for a folder whose manifest cannot be read."""
    if not folder.exists():
        build = f"build it with: dod-export build --out {folder}"
        return BundleNotFoundError(f"no such bundle: {folder}; {build}")
    if isinstance(error, FileNotFoundError):
        return BundleNotFoundError(f"{folder} is not a bundle: it has no {MANIFEST}")
    if isinstance(error, NotADirectoryError):
        return BundleError(f"{folder} is not a bundle but a file: name the folder that holds {MANIFEST}")
    return BundleError(f"cannot read {folder / MANIFEST}: {getattr(error, 'strerror', None) or error}")


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: file to read.

    Returns:
        The hash in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
