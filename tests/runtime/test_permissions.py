"""Permissions of what the runtime writes: those of the umask, also where a library made the file with others."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from dod_runtime.backends.tensorrt.engine import Engine
from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.bundle.write import write_bundle
from dod_runtime.files import apply_umask, current_umask, follows_umask
from dod_runtime.image.write import save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_current_umask(umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_umask() == umask
    monkeypatch.setattr(Path, "read_text", lambda *_: "Name: python")
    assert current_umask() == umask and os.umask(umask) == umask, "and it stays as it is"


def test_apply_umask(umask: int, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "folder").chmod(0o2700)
    for name, permissions in (("file", 0o666), ("folder", 0o777)):
        apply_umask(tmp_path / name, umask)
        assert mode(tmp_path / name) & 0o777 == permissions & ~umask
        assert follows_umask(tmp_path / name, umask) and not follows_umask(tmp_path / name, 0o777)
    assert mode(tmp_path / "folder") & stat.S_ISGID


def test_write_bundle_gives_every_file_the_permissions_of_the_umask(umask: int, copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    for path in copy.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    written = write_bundle(manifest, copy, tmp_path / "out").folder
    assert {mode(path) for path in written.rglob("*") if path.is_file()} == {0o666 & ~umask}
    assert {mode(path) for path in (written, *written.rglob("*")) if path.is_dir()} == {0o777 & ~umask}


def test_a_restored_image(umask: int, tmp_path: Path) -> None:
    save(Image.new("RGB", (4, 4)), tmp_path / "restored.png")
    assert mode(tmp_path / "restored.png") == 0o666 & ~umask


def test_the_cache_of_compiled_kernels(umask: int, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "dod-runtime" / "engine.cache"
    engine = SimpleNamespace(_cache=SimpleNamespace(serialize=lambda: b"kernels"), _saved=0, _cache_file=file)
    Engine._save_cache(cast(Any, engine))
    assert file.read_bytes() == b"kernels" and mode(file) == 0o666 & ~umask
    assert mode(file.parent) == mode(file.parent.parent) == 0o777 & ~umask
