"""What every command of this project shares: exit codes, one-line errors, tables and progress."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NoReturn, TypeVar

from .errors import DODRuntimeError, UsageError

__all__ = ["Parser", "progress", "run_command", "table"]

Item = TypeVar("Item")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose usage errors are `UsageError`s, and which already knows `--debug`.

    Abbreviated options are refused: an option added later would change what they mean.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises UsageError: the message and where to find help."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def run_command(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None = None,
    also: Iterable[type[BaseException]] = (),
) -> int:
    """Runs `main(argv)` and returns the exit code of the process.

    An error of the family, one of the classes in `also` or an `OSError` becomes one line on stderr and exit code 2,
    Ctrl-C becomes `interrupted` and 130; `--debug` in `argv` shows the traceback first. Any other exception is a bug
    of ours and passes through. `argv` is `sys.argv[1:]` where it is None.
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
    """A table in plain text, or in Markdown.

    `align` has one letter for each column, `l` or `r`; without it a column is on the right where all of its cells are
    numbers. Floats are printed with four significant digits, None as `-`.

    >>> print(table(["picture", "ms"], [["a.png", 1.25], ["b.png", None]]))
    picture    ms
    -------  ----
    a.png    1.25
    b.png       -
    >>> print(table(["picture", "ms"], [["a.png", 1.25]], markdown=True))
    | picture |   ms |
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
    """Yields the items of `iterable` and reports on stderr: a bar on a terminal, else a plain line at each tenth.

    `total` is `len(iterable)` where it is None and can be known; without any total the items are only counted.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    terminal = sys.stderr.isatty()
    start = time.monotonic()
    shown = -1
    for done, item in enumerate(iterable, start=1):
        if terminal:
            _report(_bar(label, done - 1, total, start), end="")
        yield item
        step = done * 10 // total if total else done.bit_length()
        if terminal:
            _report(_bar(label, done, total, start), end="")
        elif step != shown:
            _report(f"{label} {done}/{total or '?'} ({time.monotonic() - start:.1f} s)".lstrip())
            shown = step
    if terminal and total != 0:
        _report("")


def _report(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _bar(label: str, done: int, total: int | None, start: float, width: int = 24) -> str:
    filled = "" if not total else f" [{'#' * (width * done // total):<{width}}]"
    return f"\r{label}{filled} {done}/{total or '?'} {time.monotonic() - start:.1f} s"
