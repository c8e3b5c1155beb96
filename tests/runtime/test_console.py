"""Exit codes and one-line errors, tables, progress."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence

import pytest

from dod_runtime.console import Parser, progress, run_command, table
from dod_runtime.errors import ImageError, unknown


def raising(error: BaseException):
    def main(argv: Sequence[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ImageError("not an image:\n x.png"), 2, "error: not an image: x.png\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 2, "error: No space left on device: a.png\n"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 2, "error: Invalid link: a -> b\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line(error, code, line, capsys) -> None:
    assert run_command(raising(error), []) == code
    assert capsys.readouterr().err == line


def test_also_adds_a_family(capsys) -> None:
    assert run_command(raising(LookupError("no preset")), [], also=[LookupError]) == 2
    assert capsys.readouterr().err == "error: no preset\n"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])


def test_debug_shows_the_traceback(capsys) -> None:
    assert run_command(raising(ImageError("x")), ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_main_gets_the_arguments_and_gives_the_code() -> None:
    assert run_command(lambda argv: len(argv), ["a", "b", "c"]) == 3


@pytest.mark.parametrize("arguments", [["--nothing"], [], ["a", "--number", "x"], ["a", "--num", "1"]])
def test_usage_errors_are_one_line(arguments, capsys) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("name")
    parser.add_argument("--number", type=int)
    assert run_command(lambda argv: bool(parser.parse_args(argv)), arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "tool --help" in text


def test_help_is_no_error(capsys) -> None:
    assert run_command(lambda argv: bool(Parser(prog="tool").parse_args(argv)), ["--help"]) == 0
    assert "--debug" in capsys.readouterr().out


def test_unknown_names_the_nearest() -> None:
    assert "did you mean 'haze'?" in str(unknown("condition", "hazy", ["auto", "haze", "rain"]))
    assert "did you mean" not in str(unknown("condition", "zzz", ["auto", "haze"]))


def test_table_aligns_numbers_to_the_right() -> None:
    assert table(["n", "x"], [["a", 1], ["bb", 10]]).splitlines() == ["n      x", "---  ---", "a      1", "bb    10"]
    assert table(["n"], [[True], [None]]).splitlines()[2:] == ["yes", "-"]
    assert table(["only headers"], []).count("\n") == 1
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b"], [["a"]])


def test_progress_prints_plain_lines_without_a_terminal(capsys) -> None:
    assert list(progress(range(20), label="files")) == list(range(20))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 11 and lines[-1].startswith("files 20/20")


def test_progress_draws_a_bar_on_a_terminal(monkeypatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress(iter("ab"), 2, "files")) == ["a", "b"]
    assert "[########################] 2/2" in screen.getvalue() and screen.getvalue().endswith("\n")
