"""The exceptions of `dod`, and the wrapper that turns them into one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class DODError(Exception):
    """Base of every error that this package raises on purpose. Its text says what failed and what to do."""


class ConfigError(DODError):
    """A preset or option has an unknown key or a value of the wrong kind."""


class CheckpointError(DODError):
    """Weights are missing, malformed, or belong to another base model."""


class DataError(DODError):
    """Images are missing, unreadable, unpaired or too small."""


class TrainingError(DODError):
    """A training run cannot start, or met a value that is not finite."""


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main(argv)` and return its exit code: 2 with one line on an expected error, 130 on Ctrl-C.

    `--debug` anywhere among the arguments lets the traceback through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return main(arguments) or 0
    except (DODError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
