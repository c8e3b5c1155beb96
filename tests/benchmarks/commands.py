"""The benchmark commands as a user runs them: real processes, outside of the checkout's root."""

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
    """Runs `benchmarks/<script>.py` in the folder `where`."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=120)


def run_here(main: Callable[[Sequence[str]], int], *arguments: object) -> subprocess.CompletedProcess[str]:
    """The same within this process, which saves the imports: for what a command refuses at once."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_command(main, [str(each) for each in arguments], also=(DODError,))
    return subprocess.CompletedProcess([main.__module__], code, out.getvalue(), err.getvalue())


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that holds all of `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not done.stdout
    for word in words:
        assert word in done.stderr
