"""Shared parts of the commands: common options, subcommands, exit codes, one-line errors, tables, progress."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from . import __version__
from .errors import DODRuntimeError, UsageError, unknown

__all__ = ["Command", "Parser", "progress", "run_command", "run_group", "table"]

Item = TypeVar("Item")
LOGGERS = "dod_runtime", "dod", "export", "benchmarks"
"""Names of the loggers whose level `--verbose` and `--quiet` set."""

FORMER: Mapping[str, tuple[str, ...]] = {
    "--threads": ("--num-threads",),
    "--tile": ("--tile-size",),
    "--fp32-islands": ("--fp32-modules",),
    "--picture": ("--image",),
    "--pictures": ("--images",),
    "--samples": ("--images", "--num-samples"),
    "--min": ("--min-size",),
    "--opt": ("--opt-size",),
    "--max": ("--max-size",),
    "--batch": ("--batch-size",),
    "--preset": ("--checkpoint",),
    "--model": ("--checkpoint",),
    "--recoloured": ("--color-jitter",),
    "--misty": ("--mist",),
    "--windows": ("--crop-candidates",),
    "--more": ("--oversample",),
    "--warm-up": ("--warmup",),
    "--degraded": ("--degraded-fraction",),
    "--gate-rate": ("--w-lr-multiplier",),
    "--gate-start": ("--w-start",),
    "--decoder-rate": ("--decoder-lr-multiplier",),
}
"""Former spellings of options and the options that took their place: the first that a command has."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` and has the options that all commands share.

    These are `--verbose`, `--quiet`, `--debug` and `--version`. Abbreviated options are refused, because an option that
    is added later would change what they mean.

    Former spellings of options (`FORMER`) still work; help does not show them.

    Args:
        **kwargs: arguments of `ArgumentParser`.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)
        common = self.add_argument_group("common options")
        common.add_argument("--verbose", action="store_true", help="print more: what is chosen, and results per image")
        common.add_argument("--quiet", action="store_true", help="print results and errors only")
        common.add_argument("--debug", action="store_true", help="print the traceback of an error")
        common.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse arguments, former spellings included, and set the level of the project's loggers.

        Args:
            args: arguments, by default those of the process.
            namespace: object that takes the values, by default a new one.

        Returns:
            The namespace, and the arguments that no option takes.
        """
        given = [self._spelled(argument) for argument in (sys.argv[1:] if args is None else args)]
        found, rest = super().parse_known_args(given, namespace)
        set_log_level(getattr(found, "verbose", False), getattr(found, "quiet", False))
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with the message and the place of the help.

        Args:
            message: what is wrong with the arguments.
        """
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _spelled(self, argument: str) -> str:
        option, equals, value = argument.partition("=")
        known = self._option_string_actions
        new = () if option in known else (name for name in FORMER.get(option, ()) if name in known)
        return f"{next(iter(new), option)}{equals}{value}"


@dataclass(frozen=True)
class Command:
    """One subcommand of a group: `name` runs `main([*arguments, ...])` of `module`, which is imported only then.

    summary: one line for the group's help.
    """

    name: str
    module: str
    summary: str
    arguments: tuple[str, ...] = ()


def set_log_level(verbose: bool, quiet: bool) -> None:
    """Set what the loggers of the project print: INFO with `verbose`, ERROR with `quiet`, else WARNING.

    Args:
        verbose: print what is chosen, too.
        quiet: print errors only; it wins over `verbose`.
    """
    global _quiet
    _quiet = quiet
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


_quiet = False


def run_group(
    prog: str,
    description: str,
    commands: Sequence[Command],
    argv: Sequence[str] | None = None,
    also: Iterable[type[BaseException]] = (),
) -> int:
    """Run the subcommand that the first argument names.

    Args:
        prog: name of the group's console script, such as `dod-train`.
        description: one sentence for its help.
        commands: the subcommands.
        argv: arguments, by default those of the process.
        also: exceptions beside `DODRuntimeError` and `OSError` that become one line on stderr.

    Returns:
        The exit code; see `run_command`.
    """

    def main(arguments: Sequence[str]) -> int:
        width = max(len(command.name) for command in commands)
        names = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in commands)
        parser = Parser(
            prog=prog,
            description=description,
            usage=f"{prog} COMMAND ...",
            epilog=f"commands:\n{names}\n\n{prog} COMMAND --help describes the options of one.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if not arguments or arguments[0].startswith("-"):
            parser.parse_args(arguments)
            parser.error(f"name a command: {', '.join(command.name for command in commands)}")
        chosen = {command.name: command for command in commands}.get(arguments[0])
        if chosen is None:
            raise unknown("command", arguments[0], (command.name for command in commands))
        return importlib.import_module(chosen.module).main([*chosen.arguments, *arguments[1:]]) or 0

    return run_command(main, argv, also)


def run_command(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None = None,
    also: Iterable[type[BaseException]] = (),
) -> int:
    """Run a command and return the exit code of the process.

    Expected errors become one line on stderr and exit code 2, Ctrl-C becomes `interrupted` and 130. With `--debug` the
    traceback comes first. Any other exception is a bug and passes through.

    Args:
        main: the command; takes arguments and returns an exit code.
        argv: arguments, by default those of the process.
        also: exceptions beside `DODRuntimeError` and `OSError` that are expected.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return main(arguments)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as leave:  # argparse: --help, --version
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except (DODRuntimeError, OSError, *also) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: BaseException) -> str:
    """The text of an error on one line; an `OSError` without its number, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = ": ".join([error.strerror, " -> ".join(names)] if names else [error.strerror])
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], align: str | None = None, markdown: bool = False
) -> str:
    """Format a table in plain text or Markdown. Floats have four significant digits; None is `-`.

    Args:
        headers: the names of the columns.
        rows: cells, as many in each row as there are headers.
        align: one letter for each column, `l` or `r`; by default columns of numbers are right-aligned.
        markdown: format as Markdown.

    Returns:
        The table, without a newline at its end.

    Raises:
        ValueError: a row has another number of cells.

    >>> print(table(["image", "ms"], [["a.png", 1.25], ["b.png", None]]))
    image    ms
    -------  ----
    a.png    1.25
    b.png       -
    >>> print(table(["image", "ms"], [["a.png", 1.25]], markdown=True))
    | image |   ms |
    | :------ | ---: |
    | a.png   | 1.25 |
    """
    data = [list(row) for row in rows]
    if any(len(row) != len(headers) for row in data):
        raise ValueError(f"every row must have {len(headers)} cells, one for each of {list(headers)}")
    if align is None:
        align = "".join("r" if data and all(_numeric(row[i]) for row in data) else "l" for i in range(len(headers)))
    lines = [[str(name) for name in headers], *([_cell(value) for value in row] for row in data)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(headers))]

    def join(line: Sequence[str]) -> str:
        cells = [text.rjust(w) if a == "r" else text.ljust(w) for text, w, a in zip(line, widths, align, strict=True)]
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()

    if markdown:
        rule = ["-" * (w - 1) + ":" if a == "r" else ":" + "-" * (w - 1) for w, a in zip(widths, align, strict=True)]
    else:
        rule = ["-" * w for w in widths]
    return "\n".join(join(line) for line in [lines[0], rule, *lines[1:]])


def _numeric(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def progress(iterable: Iterable[Item], total: int | None = None, label: str = "") -> Iterator[Item]:
    """Yield items and show a tqdm bar on stderr, or with `--quiet` nothing.

    Args:
        iterable: the items.
        total: their number, by default `len(iterable)` where it has one.
        label: what is being done.

    Yields:
        The items.
    """
    yield from tqdm(iterable, label or None, total, disable=_quiet, dynamic_ncols=True, mininterval=0.5)
