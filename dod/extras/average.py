"""Average of the weights of two presets whose stage 2 started from the same weights.

    dod-train average --checkpoint mini --other build/presets/other --share 0.5

Fine-tuning runs that start from the same weights often stay in one basin of the loss. The mean of their weights then
restores each degradation nearly as well as the better of the two (model soups, Wortsman et al. 2022), without training.
Gate and sharpening filters are averaged too, which is not meaningful: fit them again with `dod-train postprocess`.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence

import torch

from dod_runtime.console import Parser

from ..checkpoint import load_checkpoint, load_model, read_metadata, save_checkpoint
from ..errors import ConfigError, run_command
from ..model.dod import DOD
from ..training.arguments import add_checkpoint, add_output
from ..training.output import open_output, part_path, training_preset
from ..training.parts import restored_on_error
from ..training.processes import say
from ..training.rebase import rebased

__all__ = ["average", "main", "parser"]

STAGE_2 = ("decoder.", "gate.", "postprocess.")
"""Prefixes of the tensors that stage 2 and the fit of the post-processing change."""


@torch.no_grad()
def average(model: DOD, other: DOD, share: float) -> int:
    """Average the weights of two models, in place.

    Args:
        model: model that becomes the mean, `(1 - share) * model + share * other`.
        other: model of the same preset that differs only in weights that stage 2 trains.
        share: weight of `other`, 0 to 1.

    Returns:
        The number of tensors that differed.

    Raises:
        ConfigError: the models differ in shape, or in weights that stage 2 does not train.
    """
    own, others = model.state_dict(), other.state_dict()
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in others.items()}:
        raise ConfigError("the models differ in shape: give two checkpoints of one preset")
    differ = [name for name in own if not torch.equal(own[name], others[name])]
    if apart := [name for name in differ if not name.startswith(STAGE_2)]:
        raise ConfigError(
            f"the models differ in {apart[0]}, which stage 2 does not train: give two with a common start"
        )
    for name in differ:
        own[name].lerp_(others[name], share)
    return len(differ)


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog="dod-train average",
        description="Average the weights of two presets whose stage 2 started from the same weights.",
    )
    add_checkpoint(parser, "preset that receives the mean")
    add_output(
        parser, "The mean replaces checkpoint and decoder in the preset's folder.", replaces="", overwrites=False
    )
    add = parser.add_argument_group("average").add_argument
    add(
        "--other",
        metavar="PRESET",
        help="preset or checkpoint that is averaged with --checkpoint and does not change (required)",
    )
    add("--share", type=float, default=0.5, metavar="FRACTION", help="weight of --other, 0 to 1 (default: %(default)s)")
    add("former", nargs="?", help=SUPPRESS)  # before --other, it was positional
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit code.

    Raises:
        ConfigError: an option or a preset is invalid, or the models have no common start.
        CheckpointError: a checkpoint is missing or does not match its preset.
    """
    command = parser()
    arguments = command.parse_args(argv)
    source = arguments.other or arguments.former
    if source is None:
        command.error("give --other, the preset whose weights are averaged in")
    preset = training_preset(arguments)
    if not 0 <= arguments.share <= 1:
        raise ConfigError(f"--share {arguments.share}: it must be in 0 to 1")
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: set `checkpoint`")
    other = load_model(source)
    theirs = read_metadata(part_path(other.preset, "checkpoint")).get("training", [])
    preset = open_output(arguments, preset, {"checkpoint": True, "vae": True})
    folder, base = part_path(preset, "checkpoint"), part_path(preset, "vae")
    model = DOD.from_preset(preset)
    training = load_checkpoint(model, folder).get("training", [])
    changed = average(model, other, arguments.share)
    run = {"stage": "average", "share": arguments.share, "other": [each for each in theirs if each not in training]}
    with restored_on_error(base):  # base and checkpoint change together
        save_checkpoint(rebased(model, run), folder, torch.float16, training=[*training, run])
    say(f"averaged {changed} tensors of {folder} and {base}; run `dod-train postprocess` to fit gate and filters again")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
