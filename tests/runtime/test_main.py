"""`dod-runtime` and `python -m dod_runtime` as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dod_runtime import __version__
from dod_runtime.__main__ import COMMANDS, run

SCRIPT = Path(sys.executable).with_name("dod-runtime")


def test_python_m_runs_the_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dod_runtime", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert all(command.name in done.stdout for command in COMMANDS)


@pytest.mark.skipif(not SCRIPT.exists(), reason="the console script is not installed")
def test_the_console_script_runs_the_group(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [SCRIPT, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith("dod-runtime "), done.stderr


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_has_help_and_a_version(name: str, capsys) -> None:
    assert run([name, "--help"]) == 0
    assert f"dod-runtime {name}" in capsys.readouterr().out
    assert run([name, "--version"]) == 0
    assert capsys.readouterr().out == f"dod-runtime {name} {__version__}\n"


def test_the_former_form_without_a_command_is_refused_with_the_commands(capsys) -> None:
    assert run(["photos", "restored"]) == 2
    text = capsys.readouterr().err
    assert "'photos'" in text and "restore" in text
