"""Atomic writes, and permissions that follow the umask whichever library creates the file."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from dod_runtime.backends.tensorrt.engine import Engine
from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.bundle.safetensors import write_tensors
from dod_runtime.bundle.write import write_bundle
from dod_runtime.files import apply_umask, atomic_write, current_umask, follows_umask
from dod_runtime.image.write import save

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_readers_see_the_former_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("former")
    with atomic_write(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "former"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_former_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("former")
    with pytest.raises(type(error)) as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == ["a"] and path.read_text() == "former"


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path) as temporary:
        temporary.write_text("x")
    assert caught.value.filename == str(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as refused, atomic_write(tmp_path / "folder") as temporary:
        temporary.write_text("x")
    assert refused.value.filename == str(tmp_path / "folder") and refused.value.filename2 is None
    with pytest.raises(FileNotFoundError, match="nothing"), atomic_write(tmp_path / "nothing"):
        pass
    assert os.listdir(tmp_path) == ["folder"]


def test_nested_writes_in_one_folder(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "b") as second:
        first.write_text("a")
        second.write_text("b")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_a_name_of_the_maximum_length(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 255)) as temporary:
        temporary.touch()
    assert os.listdir(tmp_path) == ["n" * 255]


@posix
def test_a_new_file_follows_the_umask(umask: int, tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as temporary:
        temporary.touch(mode=0o600)
    assert mode(tmp_path / "a") == 0o666 & ~umask


@posix
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(0o640)
    with atomic_write(tmp_path / "a") as temporary:
        temporary.touch(mode=0o600)
    assert mode(tmp_path / "a") == 0o640


@posix
def test_current_umask(umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_umask() == umask
    monkeypatch.setattr(Path, "read_text", lambda *_: "Name: python")
    assert current_umask() == umask and os.umask(umask) == umask, "reading the umask must not change it"


@posix
def test_apply_umask(umask: int, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "folder").chmod(0o2700)
    for name, permissions in (("file", 0o666), ("folder", 0o777)):
        apply_umask(tmp_path / name, umask)
        assert mode(tmp_path / name) & 0o777 == permissions & ~umask
        assert follows_umask(tmp_path / name, umask) and not follows_umask(tmp_path / name, 0o777)
    assert mode(tmp_path / "folder") & stat.S_ISGID


@posix
def test_permissions_of_a_bundle(umask: int, copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    for path in copy.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    written = write_bundle(manifest, copy, tmp_path / "out").folder
    assert {mode(path) for path in written.rglob("*") if path.is_file()} == {0o666 & ~umask}
    assert {mode(path) for path in (written, *written.rglob("*")) if path.is_dir()} == {0o777 & ~umask}


@posix
def test_permissions_of_images_and_tensors(umask: int, tmp_path: Path) -> None:
    save(Image.new("RGB", (4, 4)), tmp_path / "restored.png")
    write_tensors(tmp_path / "a.safetensors", {"a": (np.dtype(np.float32), (1,))}, [np.zeros(1, np.float32)])
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


@posix
def test_permissions_of_the_cache_of_compiled_kernels(umask: int, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "dod-runtime" / "engine.cache"
    engine = SimpleNamespace(_cache=SimpleNamespace(serialize=lambda: b"kernels"), _saved=0, _cache_file=file)
    Engine._save_cache(cast(Any, engine))
    assert file.read_bytes() == b"kernels" and mode(file) == 0o666 & ~umask
    assert mode(file.parent) == mode(file.parent.parent) == 0o777 & ~umask
