"""The commands of `dod-evaluate`: metrics, figures and ablations of restored images."""

from __future__ import annotations

from collections.abc import Sequence

from dod_runtime.console import Command, run_group

from ..errors import DODError

__all__ = ["COMMANDS", "run"]

COMMANDS = (
    Command(
        "images", "dod.evaluation.evaluate", "compare restored images with clean ones; with --checkpoint, restore first"
    ),
    Command("conditions", "dod.evaluation.conditions", "measure how well the condition c distinguishes degradations"),
    Command("detail", "dod.evaluation.detail_figure", "draw crops with and without detail enhancement"),
    Command("ablations", "dod.evaluation.ablations", "train and measure the variants of the paper's ablations"),
    Command("parameters", "dod.__main__", "count the parameters of a preset"),
)
"""Subcommands of `dod-evaluate`."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run `dod-evaluate`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.
    """
    return run_group("dod-evaluate", "Evaluate a DOD model.", COMMANDS, argv, also=(DODError,))


if __name__ == "__main__":
    raise SystemExit(run())
