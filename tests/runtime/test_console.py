"""The framework of the commands: options, groups, exit codes, one-line errors, log lines and progress."""

from __future__ import annotations

import errno
import io
import logging
import sys
from collections.abc import Callable, Sequence

import pytest

from dod_runtime import __version__
from dod_runtime.console import (
    FORMER,
    LOGGERS,
    Command,
    Parser,
    print_line,
    progress,
    run_command,
    run_group,
    set_log_level,
)
from dod_runtime.errors import ImageError, unknown

Main = Callable[[Sequence[str]], int]


def raising(error: BaseException) -> Main:
    def main(argv: Sequence[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ImageError("not an image:\n x.png"), 2, "error: not an image: x.png\n"),
        (OSError(errno.ENOSPC, "No space", "a.png"), 2, "error: No space: a.png\n"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 2, "error: Invalid link: a -> b\n"),
        (ImageError(), 2, "error: ImageError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, line: str, capsys) -> None:
    assert run_command(raising(error), []) == code
    assert capsys.readouterr().err == line


def test_also_adds_a_family(capsys) -> None:
    assert run_command(raising(LookupError("no preset")), [], also=[LookupError]) == 2
    assert capsys.readouterr().err == "error: no preset\n"


def test_bugs_are_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])


@pytest.mark.parametrize("error", [ImageError("x"), KeyboardInterrupt()])
def test_debug_prints_the_traceback(error: BaseException, capsys) -> None:
    run_command(raising(error), ["--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_main_takes_the_arguments_and_returns_the_code() -> None:
    assert run_command(lambda argv: len(argv), ["a", "b", "c"]) == 3


def parser() -> Parser:
    made = Parser(prog="tool")
    made.add_argument("name")
    made.add_argument("--number", type=int)
    made.add_argument("--tile-size", type=int)
    made.add_argument("--num-samples", type=int)
    return made


@pytest.mark.parametrize("arguments", [["--nothing"], [], ["a", "--number", "x"], ["a", "--num", "1"]])
def test_usage_errors_are_one_line(arguments: list[str], capsys) -> None:
    assert run_command(lambda argv: bool(parser().parse_args(argv)), arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "tool --help" in text


def test_help_has_the_common_options_at_its_end(capsys) -> None:
    made = parser()
    made.add_argument_group("sizes").add_argument("--size", help="side in px")
    for _ in range(2):
        assert run_command(lambda argv: bool(made.parse_args(argv)), ["--help"]) == 0
        text = capsys.readouterr().out
        places = [text.index(f"  {option}") for option in ("--size", "--verbose", "--quiet", "--debug", "--version")]
        assert places == sorted(places)


def test_version_is_that_of_the_runtime(capsys) -> None:
    assert run_command(lambda argv: bool(parser().parse_args(argv)), ["--version"]) == 0
    assert capsys.readouterr().out == f"tool {__version__}\n"


@pytest.mark.parametrize("arguments", [["a", "--tile", "64"], ["a", "--tile=64"], ["a", "--tile-size", "64"]])
def test_former_spellings_still_work(arguments: list[str]) -> None:
    assert parser().parse_args(arguments).tile_size == 64


def test_a_former_spelling_is_the_first_option_that_the_command_has() -> None:
    assert FORMER["--samples"] == ("--images", "--num-samples")
    assert parser().parse_args(["a", "--samples", "3"]).num_samples == 3
    made = parser()
    made.add_argument("--images")
    assert made.parse_args(["a", "--samples", "folder"]).images == "folder"


def test_a_command_may_have_an_option_that_is_a_former_spelling_elsewhere() -> None:
    made = parser()
    made.add_argument("--tile", type=int)
    found = made.parse_args(["a", "--tile", "3"])
    assert (found.tile, found.tile_size) == (3, None)


def test_former_spellings_are_not_in_the_help_and_not_known_everywhere(capsys) -> None:
    assert "--tile " not in parser().format_help()
    assert run_command(lambda argv: bool(Parser(prog="tool").parse_args(argv)), ["--tile", "3"]) == 2
    assert "--tile" in capsys.readouterr().err


def main(argv: Sequence[str]) -> int:
    """The subcommand of the groups below."""
    print(*argv)
    return len(argv)


COMMANDS = (
    Command("count", __name__, "count the arguments"),
    Command("preset", __name__, "count one more", arguments=("first",)),
    Command("missing", "no_such_module", "never imported"),
)


def group(*arguments: str) -> int:
    return run_group("tool", "A tool.", COMMANDS, arguments)


def test_a_group_runs_the_named_command(capsys) -> None:
    assert group("count", "a", "b") == 2
    assert group("preset", "a") == 2
    assert capsys.readouterr().out == "a b\nfirst a\n"


def test_the_help_of_a_group_lists_its_commands_and_imports_none(capsys) -> None:
    assert group("--help") == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"{command.name} " in text and command.summary in text


def test_the_version_of_a_group(capsys) -> None:
    assert group("--version") == 0
    assert capsys.readouterr().out == f"tool {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"), [((), ("count, preset",)), (("coutn",), ("'coutn'", "'count'")), (("--quiet",), ("count",))]
)
def test_a_group_without_a_known_command_names_them(arguments: tuple[str, ...], words: tuple[str, ...], capsys) -> None:
    assert group(*arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and all(word in text for word in words)


def test_a_group_has_the_exit_codes_of_a_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.modules[__name__], "main", raising(ImageError("no image")))
    assert group("count") == 2
    assert capsys.readouterr().err == "error: no image\n"
    monkeypatch.setattr(sys.modules[__name__], "main", lambda argv: None)
    assert group("count") == 0


def test_unknown_names_the_nearest() -> None:
    assert "'haze'?" in str(unknown("condition", "hazy", ["auto", "haze", "rain"]))
    assert "?" not in str(unknown("condition", "zzz", ["auto", "haze"]))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], ["warning", "error"]),
        (["--verbose"], ["info", "warning", "error"]),
        (["--quiet"], ["error"]),
        (["--verbose", "--quiet"], ["error"]),
    ],
)
def test_options_set_the_level_of_log_lines(arguments: list[str], shown: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    parser().parse_args(["a", *arguments])
    for name in LOGGERS:
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger(name), level)("text %d", 1)
        assert capsys.readouterr().err.splitlines() == [f"{level}: text 1" for level in shown]


def test_progress_yields_the_items_and_shows_a_bar(capsys) -> None:
    assert list(progress(range(20), label="files")) == list(range(20))
    text = capsys.readouterr().err
    assert "files" in text and "20/20" in text


def test_progress_of_an_iterator_takes_its_total(monkeypatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress(iter("ab"), 2, "files")) == ["a", "b"]
    assert "2/2" in screen.getvalue()


def test_quiet_shows_no_progress(capsys) -> None:
    set_log_level(quiet=True)
    assert list(progress(range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_lines_are_printed_above_a_bar(capsys) -> None:
    for item in progress(range(2), label="files"):
        print_line(f"line {item}")
    assert capsys.readouterr().out == "line 0\nline 1\n"
