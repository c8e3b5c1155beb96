"""Writing of a bundle: a folder of finished files becomes the bundle, and replaces a former one as a whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files import apply_umask, current_umask
from .bundle import LEDGER, MANIFEST, REPORT, Bundle, hash_file
from .schema import Manifest

__all__ = ["write_bundle"]

UNLISTED = (REPORT, LEDGER)
"""Files that the manifest does not list, besides those in the folder `report`. No restorer needs them."""


def write_bundle(
    manifest: Mapping[str, Any], staging: Path, destination: Path, hashes: Mapping[str, str] | None = None
) -> Bundle:
    """Turn a folder of files into a bundle and open it.

    A former bundle is replaced as a whole: readers never find files of both. All files and folders get the permissions
    that the umask allows.

    Args:
        manifest: content of `bundle.json` without `files`: sizes and hashes of the files in `staging` are filled in.
        staging: folder with the files, on the disk of `destination`. It is moved, so it is gone afterwards.
        destination: folder of the bundle.
        hashes: SHA-256 of files that were hashed when they were written. Others are read and hashed.

    Returns:
        The open bundle.

    Raises:
        BundleError: the manifest is not valid, `destination` exists and is not a bundle, or both folders are on
            different disks.
        OSError: the disk is full, or files cannot be written.
    """
    staging, destination = Path(staging), Path(destination)
    if destination.exists() and not _replaceable(destination):
        raise BundleError(f"{destination} exists and is not a bundle: move it away or choose another folder")
    (staging / MANIFEST).unlink(missing_ok=True)
    names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if not path.is_dir())
    data: dict[str, Any] = {**manifest, "files": {}}
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
    """Rename the former bundle away and the new one into its place. Put the former one back if that fails."""
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
    """Wait until a file, or the entries of a folder, are on the disk. Windows cannot do it for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
