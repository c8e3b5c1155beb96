"""Weights of gigabytes: they lie in files, mapped into memory, and what was read of them goes back to the system.

OpenVINO packs weights for its kernels and keeps the originals, mapped, though it hardly reads them again; ONNX Runtime
reads a UNet's once in each run. Under pressure the system takes clean pages of a map away by itself; until then they
count as memory of the process, and are the half of it. Linux alone, and from 5.4 on for what others have mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from ..bundle.merge import ArraySpecs
from ..bundle.safetensors import ALIGNMENT
from ..errors import BackendError

__all__ = ["allocate", "own_map", "release_pages", "releases_pages"]

SPILLED = "dod-merged-"
INTERVAL = 0.25  # seconds
_MAPS = Path("/proc/self/maps")
_MADV_PAGEOUT = 21
_own: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()  # and where they begin
_lock = threading.Lock()


def release_pages(folder: Path | None) -> None:
    """Gives back the pages of our own maps and of all maps of files in `folder`; whoever reads them maps them again.

    Libraries make and end maps of their own while this goes over them, and what then lies at an address may be memory
    that somebody just wrote. So these pages are reclaimed, which loses nothing whatever they hold, and only where the
    system lets this user do so: files that are the user's or that the user may write. Maps of our own are held
    meanwhile.
    """
    with _lock:
        own = dict(_own)
    for each in own:
        each.madvise(mmap.MADV_DONTNEED)  # shared: what was written is the file's, and stays in the system's cache
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
def releases_pages(folder: Path | None, meanwhile: bool = True) -> Iterator[None]:
    """Calls `shed(folder)` at the end and, meanwhile, every quarter of a second."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(INTERVAL if meanwhile else None):
            release_pages(folder)

    thread = threading.Thread(target=repeat, name="dod-shedding", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release_pages(folder)


def own_map(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 [size], read-only, whose pages `shed` gives back at no more cost than a `allocate`
    array's. Raises OSError, and ValueError for an empty file."""
    with path.open("rb") as file:
        return _owned(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _owned(made: mmap.mmap) -> np.ndarray:
    array = np.frombuffer(made, np.uint8)
    if hasattr(made, "madvise"):  # not on Windows
        with _lock:
            _own[made] = array.ctypes.data
    return array


def allocate(kinds: ArraySpecs, on_disk: bool) -> dict[str, np.ndarray]:
    """Arrays to be written, each at an address of ALIGNMENT.

    on_disk: in one temporary file without a name, mapped, that ends with the last of them, so that `shed` can give
    their memory back. Raises BackendError where the disk has no room for it.
    """
    sizes = [prod(shape) * dtype.itemsize for dtype, shape in kinds.values()]
    room = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    whole = _mapped(room) if on_disk and room else np.empty(room + ALIGNMENT, np.uint8)
    begin, arrays = -whole.ctypes.data % ALIGNMENT, {}
    for (name, (dtype, shape)), size in zip(kinds.items(), sizes, strict=True):
        arrays[name] = whole[begin : begin + size].view(dtype).reshape(shape)
        begin += -(-size // ALIGNMENT) * ALIGNMENT
    return arrays


def _mapped(room: int) -> np.ndarray:
    """uint8 [room] in a temporary file of its own."""
    try:
        with tempfile.NamedTemporaryFile(prefix=SPILLED) as file:
            os.posix_fallocate(file.fileno(), 0, room)  # a full disk is an error here, and later a crash
            made = mmap.mmap(file.fileno(), room)
    except OSError as error:
        raise BackendError(
            f"cannot lay {room / 1e9:.1f} GB of merged weights into {tempfile.gettempdir()}: "
            f"{error.strerror or error}; set TMPDIR to a folder with room for them"
        ) from error
    return _owned(made)
