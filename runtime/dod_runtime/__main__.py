"""The command `dod-runtime`, also `python -m dod_runtime`: restore images, describe a bundle, check this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .console import Command, run_group

__all__ = ["COMMANDS", "run"]

COMMANDS = (
    Command("restore", "dod_runtime.commands.restore", "restore an image, or all images of a folder"),
    Command("info", "dod_runtime.commands.info", "describe a bundle: model, conditions, sizes, targets, files, parity"),
    Command(
        "doctor", "dod_runtime.commands.doctor", "check which backends can run on this machine, and why others cannot"
    ),
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command; the entry point of the console script.

    Args:
        argv: arguments (default: those of the process).

    Returns:
        The exit code; see `console.run_command`.
    """
    return run_group("dod-runtime", "Restore images with a bundle.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(run())
