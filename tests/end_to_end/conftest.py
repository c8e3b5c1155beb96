"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def copy(
    tiny_build: tuple[Path, subprocess.CompletedProcess[str], list[str]], tmp_path: Path
) -> tuple[Path, list[str]]:
    """A copy of the tiny bundle, and the arguments that build it."""
    bundle, _, arguments = tiny_build
    mine = tmp_path / "tiny"
    shutil.copytree(bundle, mine)
    return mine, [str(mine) if argument == str(bundle) else argument for argument in arguments]
