"""`dod-train`: every subcommand is found, and its help describes every option."""

from __future__ import annotations

import re

import pytest

from dod.training.__main__ import COMMANDS, run

OWN = [command.name for command in COMMANDS if command.module.startswith(("dod.training", "dod.data"))]


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("name", OWN)
def test_every_option_is_in_a_named_group_and_states_its_default(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert run([name, "--help"]) == 0
    printed = re.sub(r"\n {20,}", " ", capsys.readouterr().out)
    assert printed.startswith(f"usage: dod-train {name} ")
    _, *groups = re.split(r"\n(?=[a-zA-Z][^\n]*:\n)", printed)
    named = {group.split(":")[0]: group for group in groups}
    assert re.findall(r"^  (--?[a-z-]+)", named["options"], re.M) == ["-h"]
    for title, text in named.items():
        if title not in ("options", "common options", "positional arguments"):
            for line in re.findall(r"^  (--.*)$", text, re.M):
                explained = "default:" in line or "required" in line or line.startswith(("--photographs", "--data"))
                assert explained, line


def test_a_missing_or_unknown_command_names_the_valid_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "stage1" in capsys.readouterr().err
    assert run(["stge1"]) == 2
    assert "'stage1'" in capsys.readouterr().err


def test_former_spellings_of_options_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stage1", "--photographs", "nowhere", "--preset", "mni", "--batch", "2", "--misty", "0.1"]) == 2
    assert "'mini'" in capsys.readouterr().err
