"""Weights of gigabytes in memory-mapped files, whose pages go back to the system after use.

OpenVINO packs weights for its kernels and keeps the originals mapped, although it hardly reads them again. ONNX Runtime
reads the weights of a UNet once per run. Under memory pressure the system drops clean pages by itself; until then they
count as memory of the process, about half of it. Pages are released on Linux only, and maps that were made by other
libraries from Linux 5.4 on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from ..bundle.merge import ArraySpecs
from ..bundle.safetensors import ALIGNMENT
from ..errors import BackendError

__all__ = ["allocate", "map_file", "release_pages", "releasing_pages"]

PREFIX = "dod-merged-"
"""Prefix of the names of temporary files with merged weights."""
INTERVAL = 0.25
"""Seconds between two releases of pages."""
_MAPS = Path("/proc/self/maps")
_MADV_PAGEOUT = 21
_own: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()
"""Maps of this module, each with the address that it begins at."""
_lock = threading.Lock()


def release_pages(folder: Path | None) -> None:
    """Release the pages of the maps of this module, and of all read-only maps of files in a folder.

    The next access maps them again. Other libraries create and end maps of their own meanwhile, so that an address may
    already belong to memory that was just written. Their pages are therefore reclaimed (`MADV_PAGEOUT`), which loses no
    data whatever they hold, and only of files that this user owns or may write, as the system demands. References to
    the maps of this module are held meanwhile.

    Args:
        folder: folder whose maps are released, None for the maps of this module alone.
    """
    with _lock:
        own = dict(_own)
    for each in own:
        each.madvise(mmap.MADV_DONTNEED)  # shared maps: written data belong to the file and stay in the system's cache
    if folder is None:
        return
    try:
        maps = _MAPS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    root = f"{folder.resolve()}{os.sep}"
    madvise = ctypes.CDLL(None).madvise
    for span, rights, path in (
        (fields[0], fields[1], fields[5]) for fields in (line.split(None, 5) for line in maps) if len(fields) == 6
    ):
        if path.startswith(root) and "w" not in rights:
            begin, end = (int(address, 16) for address in span.split("-"))
            if begin not in own.values():
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT)


@contextmanager
def releasing_pages(folder: Path | None, repeatedly: bool = True) -> Generator[None, None, None]:
    """Release pages at the end of the context, and by default every quarter of a second inside it.

    Args:
        folder: see `release_pages`.
        repeatedly: release pages inside the context, too.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(INTERVAL if repeatedly else None):
            release_pages(folder)

    thread = threading.Thread(target=repeat, name="dod-release-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release_pages(folder)


def map_file(path: Path) -> np.ndarray:
    """Map a file read-only. `release_pages` releases its pages, which stay in the system's cache.

    Args:
        path: the file.

    Returns:
        uint8 `[size]`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty.
    """
    with path.open("rb") as file:
        return _owned(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _owned(made: mmap.mmap) -> np.ndarray:
    array = np.frombuffer(made, np.uint8)
    if hasattr(made, "madvise"):  # not on Windows
        with _lock:
            _own[made] = array.ctypes.data
    return array


def allocate(kinds: ArraySpecs, on_disk: bool) -> dict[str, np.ndarray]:
    """Allocate uninitialized arrays, each at a multiple of `ALIGNMENT`.

    Args:
        kinds: dtype and shape of each array by name.
        on_disk: place them in one mapped temporary file without a name, whose pages `release_pages` can release. The
            file is freed with the last of the arrays.

    Returns:
        The arrays by name.

    Raises:
        BackendError: the disk has too little space for the file.
    """
    sizes = [prod(shape) * dtype.itemsize for dtype, shape in kinds.values()]
    total = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    whole = _mapped(total) if on_disk and total else np.empty(total + ALIGNMENT, np.uint8)
    arrays: dict[str, np.ndarray] = {}
    begin = -whole.ctypes.data % ALIGNMENT
    for (name, (dtype, shape)), size in zip(kinds.items(), sizes, strict=True):
        arrays[name] = whole[begin : begin + size].view(dtype).reshape(shape)
        begin += -(-size // ALIGNMENT) * ALIGNMENT
    return arrays


def _mapped(size: int) -> np.ndarray:
    """Return uint8 `[size]` in a temporary file of its own."""
    try:
        with tempfile.NamedTemporaryFile(prefix=PREFIX) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here; later it would be a crash
            made = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise BackendError(
            f"cannot write {size / 1e9:.1f} GB of merged weights to {tempfile.gettempdir()}: "
            f"{error.strerror or error}; set TMPDIR to a folder with enough space"
        ) from error
    return _owned(made)
