"""`make test`, `make test-all` and `make check` with a stand-in for Python that records its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "dod", "end_to_end", "examples", "export", "runtime")
DOCTESTS = ("benchmarks", "dod", "export", "runtime/dod_runtime")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(target: str, folder: Path, failing: str | None = None) -> tuple[bool, list[list[str]]]:
    """Run a target in a folder; the stand-in fails on the tests of `failing`.

    Returns:
        Whether make succeeded, and the arguments of each process.
    """
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    (folder / "pyproject.toml").touch()
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n(IFS="|"; echo "$*") >> ran\ncase "$*" in *tests/{failing}*) exit 1;; esac\n')
    python.chmod(0o755)
    (folder / ".venv" / ".ready").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", target], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode == 0, [line.split("|") for line in (folder / "ran").read_text().splitlines()]


@pytest.mark.parametrize("failing", [None, *FOLDERS])
def test_a_failing_folder_does_not_hide_the_others(failing: str | None, tmp_path: Path) -> None:
    passed, ran = make("test", tmp_path, failing)
    assert {f"tests/{folder}" for folder in FOLDERS} <= {argument for arguments in ran for argument in arguments}
    assert passed == (failing is None)


@pytest.mark.parametrize(("target", "slow"), [("test", False), ("test-all", True)])
def test_slow_tests_run_in_test_all_only(target: str, slow: bool, tmp_path: Path) -> None:
    passed, ran = make(target, tmp_path)
    assert passed and len(ran) == 4
    for arguments in ran:
        assert ("not slow" in arguments) == (not slow) and "--doctest-modules" in arguments
    assert set(DOCTESTS) <= {argument for arguments in ran for argument in arguments}


def test_check_covers_every_folder(tmp_path: Path) -> None:
    passed, ran = make("check", tmp_path)
    modules = [argument for arguments in ran for argument in arguments if argument.startswith("tests/")]
    assert passed and all((ROOT / module).is_file() for module in modules)
    assert {module.split("/")[1] for module in modules} == {*FOLDERS} - {"end_to_end"}
