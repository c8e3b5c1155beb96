"""Calibration: the prototype of each condition, and the statistics of the condition c.

    dod-train calibrate --photographs photographs/train --checkpoint mini

The checkpoint that the preset names gets both; its weights do not change. A shipped preset is calibrated in a copy.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.utils.data import Dataset

from dod_runtime.console import Parser, progress

from ..checkpoint import METADATA, load_checkpoint, save_checkpoint
from ..errors import CheckpointError, ConfigError, run_command
from ..model.dod import DOD
from ..prototypes import statistics_of
from .arguments import add_checkpoint, add_output, add_source, samples_from
from .output import open_output, part_path, training_preset
from .processes import is_main_process
from .schedule_arguments import add_schedule, schedule_from
from .state import Schedule

__all__ = ["calibrate", "main", "parser"]


def parser() -> Parser:
    """Return the parser of `dod-train calibrate`."""
    parser = Parser(
        prog="dod-train calibrate",
        description="Calibrate a checkpoint: compute the prototype of each condition, its mean c, and the statistics "
        "of c over all conditions. Weights do not change.",
    )
    add_source(parser)
    add_checkpoint(parser, "preset whose checkpoint is calibrated")
    add_output(
        parser, "The checkpoint in the preset's folder is rewritten with the prototypes.", replaces="", overwrites=False
    )
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--num-samples", type=int, default=256, metavar="N", help="samples of each condition (default: %(default)s)"
    )
    group.add_argument("--steps", dest="num_samples", type=int, default=SUPPRESS, help=SUPPRESS)  # former spelling
    texts = {"crop": "side in px of the samples that c is computed from", "seed": "seed of the samples"}
    add_schedule(parser, Schedule(crop=256), ("crop", "seed"), texts)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-train calibrate`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another base.
        ConfigError: the preset names no checkpoint, or there are too few samples.
        DataError: images are missing or unusable.
    """
    arguments = parser().parse_args(argv)
    preset, schedule = training_preset(arguments), schedule_from(arguments)
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: set `checkpoint` to the folder to write")
    if arguments.num_samples < 2:
        raise ConfigError(f"--num-samples {arguments.num_samples}: a covariance needs at least 2 samples")
    if not (part_path(preset, "checkpoint") / METADATA).is_file():
        raise CheckpointError(f"no checkpoint at {part_path(preset, 'checkpoint')}: run `dod-train stage1` first")
    preset = open_output(arguments, preset, {"checkpoint": True})
    folder = part_path(preset, "checkpoint")
    torch.manual_seed(schedule.seed)
    model = DOD.from_preset(preset)
    training = load_checkpoint(model, folder).get("training", [])
    calibrate(model, partial(samples_from, arguments, schedule, clean_fraction=0.0), arguments.num_samples)
    if is_main_process():
        save_checkpoint(model, folder, torch.float16, training=training)
    return 0


@torch.no_grad()
def calibrate(model: DOD, samples_of: Callable[[Sequence[str]], Dataset], count: int) -> None:
    """Compute the prototypes and the statistics of the condition c, in place.

    A condition's prototype is the mean c over samples of it. The statistics are the mean of c over all samples, and its
    covariance around the prototypes: differences between photographs, which are divided out, without the differences
    between degradations.

    Args:
        model: the model, whose `prototypes` and `statistics` are set.
        samples_of: returns the degraded samples of the conditions given.
        count: number of samples of each condition.
    """
    per_condition = {}
    for name in progress(model.preset.conditions, label="calibrate"):
        dataset = samples_of((name,))
        per_condition[name] = torch.cat([model.modulation(dataset[i][0][None])[0] for i in range(count)])
    model.prototypes = {name: c.mean(0) for name, c in per_condition.items()}
    mean = torch.cat(list(per_condition.values())).mean(0)
    centered = torch.cat([c - c.mean(0) + mean for c in per_condition.values()])
    model.statistics = torch.from_numpy(statistics_of(centered.numpy())).float()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
