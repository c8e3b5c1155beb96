"""The exceptions of `dod`, and the wrapper that turns them into one line and exit code 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dod_runtime import console


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
    """Run a command's `main(argv)` and return the exit code of the process; see `dod_runtime.console.run_command`."""
    return console.run_command(lambda arguments: main(arguments) or 0, argv, also=(DODError,))
