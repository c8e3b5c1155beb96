"""The command `dod-bench`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS, run
from dod_runtime.console import Command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_a_script_too(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    name, module = command.name, command.module
    assert module == f"benchmarks.{name}" and (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert importlib.import_module(module).parser().prog == f"dod-bench {name}"
    assert run([name, "--help"]) == 0
    assert f"dod-bench {name}" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command.name in printed and command.summary in printed for command in COMMANDS)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["latenci"]) == 2
    assert "'latenci'" in (message := capsys.readouterr().err) and "'latency'" in message
    assert run(["quality", "--bundle", str(tmp_path / "none")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "none" in message
