"""Command-line options for the fields of `Schedule`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from .loop import PRECISIONS
from .state import Schedule

__all__ = ["add_schedule", "schedule_from"]

SCHEDULE_HELP = {
    "steps": "number of optimizer steps",
    "batch_size": "samples per batch and process",
    "crop": "side of the samples in px",
    "learning_rate": "peak learning rate of AdamW",
    "warmup": "number of steps over which the learning rate rises linearly to its peak",
    "weight_decay": "weight decay of AdamW",
    "clip": "maximum gradient norm; larger gradients are scaled down",
    "seed": "seed of samples, noise and initial weights",
    "workers": "number of processes that load samples; 0 loads them in the main process",
    "save_every": "number of steps between two saves of the state",
    "accumulation": "number of batches whose gradients are accumulated for a step",
    "precision": "precision of the networks in training; fp16 needs a GPU",
}
"""Help of the option for each field of `Schedule`."""
_METAVARS = {"crop": "PX", "learning_rate": "LR"}


def add_schedule(
    parser: ArgumentParser,
    defaults: Schedule,
    names: Sequence[str] = tuple(SCHEDULE_HELP),
    texts: Mapping[str, str] | None = None,
) -> Any:
    """Add an option for fields of `Schedule`.

    Args:
        parser: parser of a command.
        defaults: default values.
        names: fields that become options; by default all.
        texts: help of fields whose meaning differs from `SCHEDULE_HELP`.

    Returns:
        The group.
    """
    group = parser.add_argument_group("schedule")
    shown = {**SCHEDULE_HELP, **(texts or {})}
    for name in names:
        value = getattr(defaults, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            choices=list(PRECISIONS) if name == "precision" else None,
            metavar=_METAVARS.get(name, {int: "N", float: "X"}.get(type(value))),
            help=f"{shown[name]} (default: %(default)s)",
        )
    return group


def schedule_from(arguments: Namespace) -> Schedule:
    """Return the schedule that the arguments describe.

    Args:
        arguments: arguments of a parser with `add_schedule`.

    Returns:
        The schedule; fields without an option have their defaults.

    Raises:
        ConfigError: a number is out of range.
    """
    names = {field.name for field in fields(Schedule)}
    return Schedule(**{name: value for name, value in vars(arguments).items() if name in names})
