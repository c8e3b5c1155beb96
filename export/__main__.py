"""The console script `dod-export`."""

from __future__ import annotations

from collections.abc import Sequence

from dod.errors import DODError
from dod_runtime.console import Command, run_group
from export.errors import ExportError

__all__ = ["COMMANDS", "main", "run"]

COMMANDS = (Command("build", "export.build_engines", "build a bundle from a checkpoint: graphs, engines, parity"),)
"""The subcommands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the first argument names.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code; see `dod_runtime.console.run_command`.
    """
    return run_group(
        "dod-export", "Export a checkpoint to a bundle that the runtime opens.", COMMANDS, argv, (ExportError, DODError)
    )


def run() -> int:
    """Return the exit code of the console script."""
    return main()


if __name__ == "__main__":
    raise SystemExit(run())
