"""Released pages return to the system, are read again, and lose nothing that was written."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dod_runtime.backends import mapped
from dod_runtime.backends.mapped import allocate, map_file, release_pages, releasing_pages
from dod_runtime.bundle.safetensors import ALIGNMENT
from dod_runtime.errors import BackendError

SIZE = 32 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")


def resident(array: np.ndarray) -> int:
    """Return the resident bytes of the map that begins at the address of an array."""
    address = array.__array_interface__["data"][0]
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.split("-")[0] == f"{address:x}" or line.startswith(f"{address:08x}-"):
            return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("Rss:"))
    raise AssertionError(f"no map at {address:x}")


def test_pages_of_a_folder_are_released_and_read_again(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        content.tofile(tmp_path / folder / "weights")
    here, there = (np.memmap(tmp_path / folder / "weights", np.uint8, "r") for folder in ("here", "there"))
    assert int(here.sum()) == int(there.sum())
    assert min(resident(here), resident(there)) >= SIZE
    release_pages(tmp_path / "here")
    assert resident(here) == 0 and resident(there) >= SIZE
    np.testing.assert_array_equal(here, content)
    with releasing_pages(tmp_path / "here"):
        pass
    assert resident(here) == 0


def test_own_maps_are_released_and_stay_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    for name in ("own", "other"):
        content.tofile(tmp_path / name)
    own, other = map_file(tmp_path / "own"), np.memmap(tmp_path / "other", np.uint8, "r")
    np.testing.assert_array_equal(own, other)
    assert resident(own) == SIZE
    reclaimed = []

    class Libc:
        def __init__(self, _: None) -> None: ...

        def madvise(self, begin: ctypes.c_void_p, *_: object) -> None:
            reclaimed.append(begin.value)

    monkeypatch.setattr(mapped.ctypes, "CDLL", Libc)
    release_pages(tmp_path)
    assert resident(own) == 0
    assert reclaimed == [other.ctypes.data], "reclaimed pages are read from the disk again"
    np.testing.assert_array_equal(own, content)


def test_private_changes_are_kept(tmp_path: Path) -> None:
    np.zeros(SIZE, np.uint8).tofile(tmp_path / "weights")
    with open(tmp_path / "weights", "rb") as file:
        private = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    private[:] = 7
    release_pages(tmp_path)
    assert (private == 7).all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_allocated_arrays_are_aligned_keep_their_values_and_leave_no_file(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped.tempfile, "tempdir", str(tmp_path))
    random = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (1000, 1000), "none": (0, 4), "c": (2, 3, 5)}
    expected = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected["fp16"] = random.standard_normal((7, 9)).astype(np.float16)
    found = allocate({name: (value.dtype, value.shape) for name, value in expected.items()}, on_disk)
    assert not os.listdir(tmp_path), "the file has no name"
    for name, value in found.items():
        assert (not value.size or value.ctypes.data % ALIGNMENT == 0) and value.flags.c_contiguous
        value[...] = expected[name]
    release_pages(None)
    if on_disk:
        assert resident(found["a"]) == 0
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], strict=True)
    assert allocate({}, on_disk) == {}


def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped.os, "posix_fallocate", full)
    with pytest.raises(BackendError, match=r"0\.0 GB.*No space left on device.*TMPDIR"):
        allocate({"a": (np.dtype(np.float32), (4,))}, on_disk=True)
