"""`make test` with a stub of Python that records its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "dod", "end_to_end", "export", "runtime")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("failing", [None, *FOLDERS])
def test_every_folder_is_tested_whichever_fails(failing: str | None, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> ran\ncase "$*" in *tests/{failing}*) exit 1;; esac\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "test"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    ran = (tmp_path / "ran").read_text()
    assert all(f"tests/{folder}" in ran for folder in FOLDERS), done.stderr
    assert (done.returncode != 0) == (failing is not None)
