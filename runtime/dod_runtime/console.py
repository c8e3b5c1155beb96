"""Framework of all commands: common options, subcommands, exit codes, one-line errors, log lines, progress."""

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
from .tables import facts_list, table

__all__ = [
    "Command",
    "Parser",
    "facts_list",
    "print_line",
    "progress",
    "run_command",
    "run_group",
    "set_log_level",
    "table",
]

Item = TypeVar("Item")
LOGGERS = "dod_runtime", "dod", "export", "benchmarks"
"""Names of the loggers whose level `--verbose` and `--quiet` set; the level of the first one is that of the process."""

FORMER: Mapping[str, tuple[str, ...]] = {
    "--threads": ("--num-threads",),
    "--tile": ("--tile-size",),
    "--fp32-islands": ("--fp32-modules",),  # words: ok
    "--picture": ("--image",),  # words: ok
    "--pictures": ("--images",),  # words: ok
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
"""Former spellings of options, each with the options that replaced it; the first one that a command has is used."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with the options that all commands share; it raises `UsageError`.

    These options are `--verbose`, `--quiet`, `--debug` and `--version`. Options cannot be abbreviated, because a later
    option could make an abbreviation ambiguous. Former spellings (`FORMER`) still work and are not shown in the help.

    Args:
        verbose: help text of `--verbose`.
        **kwargs: arguments of `ArgumentParser`.
    """

    def __init__(self, verbose: str = "also print log messages of level INFO", **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)
        self._common = common = self.add_argument_group("common options")
        common.add_argument("--verbose", action="store_true", help=verbose)
        common.add_argument(
            "--quiet", action="store_true", help="print only errors and results, without progress and warnings"
        )
        common.add_argument("--debug", action="store_true", help="print the traceback of an error before its message")
        common.add_argument("--version", action="version", version=f"%(prog)s {__version__}", help="print the version")

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse arguments, former spellings included, and set the level of the project's loggers.

        Args:
            args: arguments (default: those of the process).
            namespace: object that receives the values (default: a new one).

        Returns:
            The namespace, and the arguments that were not recognized.
        """
        given = [self._spelled(argument) for argument in (sys.argv[1:] if args is None else args)]
        found, rest = super().parse_known_args(given, namespace)
        set_log_level(getattr(found, "verbose", False), getattr(found, "quiet", False))
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`.

        Args:
            message: description of the wrong argument; a pointer to `--help` is added.
        """
        raise UsageError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """Return the help, with the common options at its end."""
        self._action_groups.remove(self._common)
        self._action_groups.append(self._common)
        return super().format_help()

    def _spelled(self, argument: str) -> str:
        option, equals, value = argument.partition("=")
        known = self._option_string_actions
        new = () if option in known else (name for name in FORMER.get(option, ()) if name in known)
        return f"{next(iter(new), option)}{equals}{value}"


@dataclass(frozen=True)
class Command:
    """A subcommand of a group.

    Attributes:
        name: name of the subcommand.
        module: module whose `main(argv) -> int` runs it; it is imported only then.
        summary: one line for the help of the group.
        arguments: arguments that come before those of the user.
    """

    name: str
    module: str
    summary: str
    arguments: tuple[str, ...] = ()


class _Handler(logging.StreamHandler[Any]):
    """Writes log records to the present `sys.stderr` as `warning: ...`, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr)


def set_log_level(verbose: bool = False, quiet: bool = False) -> None:
    """Set the level of the project's loggers: INFO with `verbose`, ERROR with `quiet`, else WARNING.

    Args:
        verbose: print choices, too.
        quiet: print errors only; it overrides `verbose`.
    """
    if not logging.root.handlers:
        logging.root.addHandler(_Handler())
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def run_group(
    prog: str,
    description: str,
    commands: Sequence[Command],
    argv: Sequence[str] | None = None,
    also: Iterable[type[BaseException]] = (),
) -> int:
    """Run the subcommand that the first argument names.

    Args:
        prog: name of the console script, such as `dod-train`.
        description: one sentence for its help.
        commands: the subcommands.
        argv: arguments (default: those of the process).
        also: exceptions in addition to `DODRuntimeError` and `OSError` that become one line on stderr.

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
            epilog=f"commands:\n{names}\n\nCommon options come after COMMAND.\n"
            f"`{prog} COMMAND --help` describes a command's options.",
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
    traceback comes first. Any other exception is a bug and is not caught.

    Args:
        main: the command; takes arguments and returns an exit code.
        argv: arguments (default: those of the process).
        also: expected exceptions in addition to `DODRuntimeError` and `OSError`.

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
    """Return the message of an error on one line; for an `OSError` without its number and with its file names."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = ": ".join([error.strerror, " -> ".join(names)] if names else [error.strerror])
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def progress(iterable: Iterable[Item], total: int | None = None, label: str = "") -> Iterator[Item]:
    """Yield items and show a progress bar on stderr, except with `--quiet`.

    Args:
        iterable: the items.
        total: number of items (default: `len(iterable)` where it has one).
        label: description of the work.

    Yields:
        The items.
    """
    hidden = logging.getLogger(LOGGERS[0]).getEffectiveLevel() > logging.WARNING
    yield from tqdm(iterable, label or None, total, disable=hidden, dynamic_ncols=True, mininterval=0.5)


def print_line(text: str) -> None:
    """Print a line on stdout, above a progress bar that is shown.

    Args:
        text: the line, without a newline.
    """
    tqdm.write(text)
