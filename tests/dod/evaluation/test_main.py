"""`dod-evaluate`: every subcommand is found, and its help describes every option."""

from __future__ import annotations

import re

import pytest

from dod.evaluation.__main__ import COMMANDS, run

OWN = [command.name for command in COMMANDS if command.module.startswith("dod.evaluation")]


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("name", OWN)
def test_every_option_is_in_a_named_group(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert run([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: dod-evaluate {name} ")
    options = printed.split("\noptions:\n")[1].split("\n\n")[0]
    assert re.findall(r"^  (--?[a-z-]+)", options, re.M) == ["-h"]


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image"]) == 2
    assert "'images'" in capsys.readouterr().err
