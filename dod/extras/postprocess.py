"""Fit of the post-processing, the gate and the sharpening filters, after both stages.

    dod-train postprocess --photographs photographs/train --checkpoint mini --soft 0.6 --mist 0.3

The sharpening filters, and the network that mixes them into one kernel per image, are fitted to the second moments of
blurred and clean pairs. The gate's share is fitted as a classifier of spectrum, histogram and condition c. The UNet
does not run. The command continues from the checkpoint that the preset names, or
from that of a copy; fitting it again needs `--overwrite`.
"""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from dod_runtime.console import Parser

from ..checkpoint import load_checkpoint, save_checkpoint
from ..errors import ConfigError, run_command
from ..model.dod import DOD
from ..model.postprocess import Gate, Postprocess
from ..training.arguments import add_checkpoint, add_output, add_source, samples_from
from ..training.output import open_output, part_path, training_preset, was_fitted
from ..training.schedule_arguments import add_schedule
from ..training.state import Schedule
from .fit_gate import fit_gate, gate_samples
from .fit_kernel import fit_kernel, measure_moments
from .fitting import HELD_BACK

__all__ = ["main", "parser"]

OPTIONS = ("steps", "batch_size", "crop", "learning_rate", "weight_decay", "seed", "workers", "save_every")
"""Fields of `Schedule` that are options of this command. They apply to the fit of the kernel."""
DEFAULTS = Schedule(steps=12000, batch_size=256, crop=448, learning_rate=2e-3, weight_decay=0.03, save_every=2000)
"""Default schedule of the fit of the kernel."""
HELP = {
    "steps": "number of optimizer steps of the filters' fit",
    "batch_size": "samples in a batch of either fit",
    "crop": "side of the images in px",
    "learning_rate": "peak learning rate of the filters' fit",
    "weight_decay": "weight decay of the filters' fit",
    "seed": "seed of the images and of initial weights",
    "save_every": "number of steps of the filters' fit between two log lines",
}
"""Help of the options of the schedule."""
GATE = {"steps": 2500, "learning_rate": 1e-3, "weight_decay": 0.1, "save_every": 500}
"""Fields of the schedule that differ in the fit of the gate."""
KERNEL_CLEAN_FRACTION = 0.3
"""Fraction of clean images in the fit of the kernel."""


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog="dod-train postprocess",
        description="Fit the post-processing of a checkpoint: the gate, which decides how much of an image bypasses "
        "the model, and the sharpening filters of that bypass.",
    )
    add_source(parser)
    add_checkpoint(parser, "preset whose post-processing is fitted")
    add_output(
        parser,
        "The checkpoint in the preset's folder is rewritten with gate and filters.",
        "Post-processing that was fitted before is replaced only with --overwrite.",
    )
    add = parser.add_argument_group("fit").add_argument
    shown = "(default: %(default)s)"
    add("--num-samples", type=int, default=12000, metavar="N", help=f"number of images to fit the gate to {shown}")
    add(
        "--num-pairs", type=int, default=16000, metavar="N", help=f"number of image pairs to fit the filters to {shown}"
    )
    add("--pairs", type=int, dest="num_pairs", default=SUPPRESS, help=SUPPRESS)
    fraction = f"fraction of the gate's images that are not degraded, 0 to 1 {shown}"
    add("--clean-fraction", type=float, default=0.25, metavar="FRACTION", help=fraction)
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help=f"precision of the DDPM encoder, which computes c {shown}",
    )
    add_schedule(parser, DEFAULTS, OPTIONS, HELP)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit code.

    Raises:
        ConfigError: an option or the preset is invalid.
        CheckpointError: the checkpoint is missing or does not match the preset.
        DataError: images are missing or unusable.
    """
    arguments = parser().parse_args(argv)
    preset = training_preset(arguments)
    schedule = replace(DEFAULTS, **{key: getattr(arguments, key) for key in OPTIONS})
    _check(arguments, schedule, preset.size_multiple)
    if preset.postprocess is None or preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} has no post-processing to fit: set `postprocess` and `checkpoint`")
    passing = tuple(name for name in preset.conditions if name in preset.postprocess.passing)
    if not set(preset.conditions) - set(passing):
        raise ConfigError(
            f"all conditions bypass the model ({', '.join(passing)}): add at least one degradation to restore"
        )
    preset = open_output(arguments, preset, {"checkpoint": not was_fitted(preset, "postprocess")})
    folder, model = part_path(preset, "checkpoint"), DOD.from_preset(preset)
    training = load_checkpoint(model, folder, without_postprocess=True).get("training", [])
    gate, post = cast(Gate, model.gate), cast(Postprocess, model.postprocess)
    pairs = samples_from(arguments, schedule, preset.conditions, arguments.clean_fraction)
    torch.manual_seed(schedule.seed)
    _reset(gate)
    log: dict[str, Any] = {}
    if passing:
        without_oversampling = Namespace(**{**vars(arguments), "oversample": []})
        blurred = samples_from(without_oversampling, schedule, passing, KERNEL_CLEAN_FRACTION)
        moments = measure_moments(blurred, model, arguments.num_pairs, schedule.workers)
        log["kernel"] = fit_kernel(gate, post, moments, schedule)
    samples = gate_samples(pairs, model, arguments.num_samples, schedule.workers, arguments.precision)
    log["gate"] = fit_gate(gate, samples, pairs.names, replace(schedule, **GATE))
    options = (*OPTIONS, "num_samples", "num_pairs", "clean_fraction", "precision")
    given = {key: getattr(arguments, key) for key in options}
    run = {"stage": "postprocess", "schedule": given, "log": log, "samples": pairs.identity}
    save_checkpoint(model, folder, torch.float16, training=[*training, run])
    return 0


def _check(arguments: Namespace, schedule: Schedule, multiple: int) -> None:
    if schedule.crop % multiple:
        raise ConfigError(f"--crop {schedule.crop}: it must be a multiple of {multiple}")
    for name in ("num_samples", "num_pairs"):
        if getattr(arguments, name) < HELD_BACK:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {getattr(arguments, name)}: it must be at least {HELD_BACK}")


def _reset(gate: Gate) -> None:
    """Give the networks of a gate random initial weights, with gains of zero."""
    for layer in (*gate.sharpness, *gate.passing):
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    for parameter in cast(nn.Linear, gate.sharpness[-1]).parameters():
        nn.init.zeros_(parameter)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
