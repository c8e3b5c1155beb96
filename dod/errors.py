"""Exceptions of `dod`, and the wrapper that runs its commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dod_runtime import console

__all__ = ["CheckpointError", "ConfigError", "DODError", "DataError", "TrainingError", "run_command"]


class DODError(Exception):
    """Base class of the errors of this package. The text is one line: what failed, with which value, what to do."""


class ConfigError(DODError, ValueError):
    """A preset or an option has an unknown key, or a value of the wrong type or out of range."""


class CheckpointError(DODError):
    """Weights are missing, malformed, or belong to another base model."""


class DataError(DODError):
    """Images are missing, unreadable, unpaired or too small."""


class TrainingError(DODError):
    """A training run cannot start, or a value is not finite."""


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command of this package and return its exit code; see `dod_runtime.console.run_command`.

    Args:
        main: command that takes arguments and returns an exit code, or None for success.
        argv: arguments; those of the process by default.

    Returns:
        0 on success, 2 with one line on stderr for an expected error, 130 for Ctrl-C.
    """
    return console.run_command(lambda arguments: main(arguments) or 0, argv, also=(DODError,))
