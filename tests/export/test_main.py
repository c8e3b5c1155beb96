"""The console script `dod-export`."""

from __future__ import annotations

import pytest

from export.__main__ import COMMANDS, main


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text and command.summary in text for command in COMMANDS)
    for command in COMMANDS:
        assert main([command.name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: dod-export {command.name}") and "--checkpoint" in text


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["biuld"]) == 2
    assert "did you mean 'build'" in capsys.readouterr().err
