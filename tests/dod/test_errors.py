"""Exceptions, and the exit codes of commands."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dod.errors import CheckpointError, ConfigError, DataError, DODError, TrainingError, run_command


@pytest.mark.parametrize("error", [CheckpointError, ConfigError, DataError, TrainingError])
def test_an_expected_error_is_one_line_and_code_2(error: type[DODError], capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: Sequence[str]) -> int:
        raise error("no weights\nat here")

    assert run_command(main, []) == 2
    assert capsys.readouterr().err == "error: no weights at here\n"
    assert run_command(main, ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_other_exceptions_are_bugs_and_pass_through() -> None:
    def main(_: Sequence[str]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main, [])


def test_the_command_gets_its_arguments() -> None:
    assert run_command(lambda arguments: len(arguments), ["a", "b", "c"]) == 3
    assert run_command(lambda _: None, []) == 0
