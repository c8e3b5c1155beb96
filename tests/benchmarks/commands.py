"""Run benchmark commands in processes of their own, outside the checkout, or in this process."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from dod.errors import DODError
from dod_runtime.console import run_command

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object, where: Path) -> subprocess.CompletedProcess[str]:
    """Run `benchmarks/<script>.py` in the folder `where`."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)


def run_here(main: Callable[[Sequence[str]], int], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command's `main` in this process, which saves the imports."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_command(main, [str(each) for each in arguments], also=(DODError,))
    return subprocess.CompletedProcess([main.__module__], code, out.getvalue(), err.getvalue())


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check for exit code 2, nothing on stdout, and one line on stderr that contains all of `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not done.stdout
    for word in words:
        assert word in done.stderr
