"""Command-line options that the evaluation commands share."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

__all__ = ["add_model_options"]


def add_model_options(parser: ArgumentParser, default: str | None = "mini") -> Any:
    """Add `--checkpoint`, `--base` and `--ddpm` in a group of their own.

    Args:
        parser: parser of a command.
        default: default of `--checkpoint`; None makes the model optional.

    Returns:
        The group.
    """
    group = parser.add_argument_group("model")
    shown = "(default: %(default)s)" if default else "(default: none; the first folder holds restored images)"
    group.add_argument(
        "--checkpoint",
        default=default,
        metavar="PRESET",
        help=f"model that is run in PyTorch: preset or checkpoint folder {shown}",
    )
    group.add_argument(
        "--base", metavar="SOURCE", help="folder or hub id of the frozen base (default: the preset's base.source)"
    )
    group.add_argument(
        "--ddpm", metavar="SOURCE", help="folder or hub id of the DDPM (default: the preset's ddpm.source)"
    )
    return group
