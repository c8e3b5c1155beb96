"""Average the weights of two presets that stage 2 trained from the same ones.

    python -m dod.extras.average build/presets/other --preset mini --share 0.5

Fine-tuning runs from one start often lie in one basin of the loss. The mean of their weights then restores each
degradation nearly as well as the better of both (model soups, Wortsman et al. 2022), without training. The gate and the
sharpening filters are averaged too, which has no meaning: fit them again with `dod.extras.postprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dod_runtime.console import Parser

from ..checkpoint import load_checkpoint, load_model, read_metadata, save_checkpoint
from ..errors import ConfigError, run_command
from ..model.dod import DOD
from ..training.arguments import add_output
from ..training.output import open_output, part_path, training_preset
from ..training.parts import restored_on_error
from ..training.processes import say
from ..training.rebase import rebased

STAGE_2 = ("decoder.", "gate.", "postprocess.")
"""What stage 2 and the fit of the post-processing train, as the names of a model's state begin."""


@torch.no_grad()
def average(model: DOD, other: DOD, share: float) -> int:
    """Move the trained weights of a model and its base's decoder towards those of another, in place.

    Args:
        model: The model that becomes the mean, `(1 - share) * model + share * other`.
        other: A model of the same shapes, with the same weights but for what stage 2 trains.
        share: Weight of `other`, in 0 to 1.

    Returns:
        How many tensors differed.

    Raises:
        ConfigError: The models differ in shape or in weights that stage 2 does not train.
    """
    own, others = model.state_dict(), other.state_dict()
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in others.items()}:
        raise ConfigError("the models differ in shape: both must be of one preset")
    differ = [name for name in own if not torch.equal(own[name], others[name])]
    if apart := [name for name in differ if not name.startswith(STAGE_2)]:
        raise ConfigError(f"the models differ in {apart[0]}, which stage 2 does not train: they have no common start")
    for name in differ:
        own[name].lerp_(others[name], share)
    return len(differ)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="dod-train average", description="Average the weights of two presets.")
    parser.add_argument("other", help="folder of the preset whose weights are averaged in")
    add_output(parser)
    parser.add_argument(
        "--checkpoint", default="mini", help="preset: name, folder or preset.yaml (default: %(default)s)"
    )
    parser.add_argument("--share", type=float, default=0.5, help="weight of OTHER, in 0 to 1 (default: %(default)s)")
    arguments = parser.parse_args(argv)
    preset = training_preset(arguments)
    if not 0 <= arguments.share <= 1:
        raise ConfigError(f"--share {arguments.share}: it must be in 0 to 1")
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: there is nothing to average")
    other = load_model(arguments.other)
    theirs = read_metadata(part_path(other.preset, "checkpoint")).get("training", [])
    preset = open_output(arguments, preset, {"checkpoint": True, "vae": True})
    folder, base = part_path(preset, "checkpoint"), part_path(preset, "vae")
    model = DOD.from_preset(preset)
    training = load_checkpoint(model, folder).get("training", [])
    changed = average(model, other, arguments.share)
    run = {"stage": "average", "share": arguments.share, "other": [each for each in theirs if each not in training]}
    with restored_on_error(base):  # base and checkpoint, or neither
        save_checkpoint(rebased(model, run), folder, torch.float16, training=[*training, run])
    say(f"{changed} tensors of {folder} and {base} are averaged; fit gate and filters with dod.extras.postprocess")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
