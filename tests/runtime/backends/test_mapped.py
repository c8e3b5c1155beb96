"""Pages of maps go back to the system and come again, and nothing that was written is lost."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dod_runtime.backends import mapped
from dod_runtime.backends.mapped import allocate, own_map, release_pages, releases_pages
from dod_runtime.bundle.safetensors import ALIGNMENT
from dod_runtime.errors import BackendError

SIZE = 32 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone")


def resident(array: np.ndarray) -> int:
    """Bytes of the map that begins where `array` does which are in memory for this process."""
    address = array.__array_interface__["data"][0]
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.split("-")[0] == f"{address:x}" or line.startswith(f"{address:08x}-"):
            return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("Rss:"))
    raise AssertionError(f"no map at {address:x}")


def test_what_was_read_is_given_back_and_read_again(tmp_path: Path) -> None:
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
    with releases_pages(tmp_path / "here"):
        pass
    assert resident(here) == 0


def test_a_map_of_our_own_is_given_back_and_stays_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    for name in ("own", "other"):
        content.tofile(tmp_path / name)
    own, other = own_map(tmp_path / "own"), np.memmap(tmp_path / "other", np.uint8, "r")
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
    assert reclaimed == [other.ctypes.data], "what is reclaimed is read from the disk anew"
    np.testing.assert_array_equal(own, content)


def test_private_changes_stay(tmp_path: Path) -> None:
    np.zeros(SIZE, np.uint8).tofile(tmp_path / "weights")
    with open(tmp_path / "weights", "rb") as file:
        private = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    private[:] = 7
    release_pages(tmp_path)
    assert (private == 7).all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_laid_out_is_aligned_keeps_what_is_written_and_leaves_no_file(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped.tempfile, "tempdir", str(tmp_path))
    random = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (1000, 1000), "none": (0, 4), "c": (2, 3, 5)}
    expected = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected["half"] = random.standard_normal((7, 9)).astype(np.float16)
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
    with pytest.raises(BackendError, match=r"cannot lay 0\.0 GB of merged weights .*No space left.*set TMPDIR"):
        allocate({"a": (np.dtype(np.float32), (4,))}, on_disk=True)
