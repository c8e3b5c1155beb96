"""Permissions in a bundle: all files and folders have those that the umask allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dod_runtime.files import current_umask
from tests.conftest import build_engines


def modes(folder: Path) -> dict[bool, set[int]]:
    """Return the permissions in a bundle, of its folders (True) and of its files (False)."""
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for path in (folder, *folder.rglob("*")):
        found[path.is_dir()].add(path.stat().st_mode & 0o777)
    return found


def test_every_file_is_readable_as_the_umask_says(tiny_bundle: Path) -> None:
    umask = current_umask()
    assert modes(tiny_bundle) == {True: {0o777 & ~umask}, False: {0o666 & ~umask}}


@pytest.mark.slow
def test_a_rebuild_under_another_umask(copy: tuple[Path, list[str]], tmp_path: Path) -> None:
    bundle, arguments = copy
    (bundle / "conditions" / "noise.safetensors").chmod(0o600)  # as earlier versions wrote it
    before = os.umask(0o027)
    try:
        done = build_engines(*arguments, where=tmp_path)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert ".onnx " not in done.stdout and modes(bundle) == {True: {0o750}, False: {0o640}}
