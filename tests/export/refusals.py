"""Refused commands: one line on stderr, exit code 2, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dod.errors import DODError
from dod_runtime.console import run_command
from export.build_engines import main
from export.errors import ExportError

Refused = Callable[..., str]
"""Function that runs the command with the arguments, for a bundle at `out`, and returns its line on stderr."""


def run(*arguments: object) -> int:
    return run_command(main, list(map(str, arguments)), also=(ExportError, DODError))


def refused_by(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    code = run(*arguments, "--out", out)
    errors = capsys.readouterr().err
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert not out.exists() and not out.with_name(f"{out.name}.partial").exists()
    return errors
