"""The command line that the training commands share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .loop import PRECISIONS, Schedule


def training_parser(prog: str, description: str, commands: dict[str, dict[str, Any]]) -> ArgumentParser:
    """What the training commands share: `command`, pictures, preset, state, and an option for each field of `Schedule`.

    commands: the defaults of each command where they are not those of `Schedule`, and of its further options.
    """
    parser = ArgumentParser(prog=prog, description=description)
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, defaults in commands.items():
        command = parsers.add_parser(name)
        command.add_argument("--photographs", type=Path, required=True, help="folder of clean photographs")
        command.add_argument("--preset", default="mini", help="name, folder or file; default mini")
        command.add_argument(
            "--state", type=Path, default=Path("build/training"), help="where the run is kept to be resumed from"
        )
        command.add_argument(
            "--continue", dest="go_on", action="store_true", help="start from the weights that the preset names"
        )
        for field, value in {**asdict(Schedule()), **defaults}.items():
            choices = list(PRECISIONS) if field == "precision" else None
            option = f"--{field.replace('_', '-')}"
            command.add_argument(option, type=type(value), default=value, choices=choices, help=f"default {value}")
    return parser


def schedule_from(arguments: Namespace) -> Schedule:
    """The schedule that the arguments of a `training_parser` describe."""
    return Schedule(**{name: getattr(arguments, name) for name in asdict(Schedule())})
