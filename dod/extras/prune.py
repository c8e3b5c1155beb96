"""Detail modules with fewer dense blocks, derived from a trained model. They are most of the cost of a decoder.

    dod-train prune --photographs photographs/train --checkpoint mini

Set `detail.dense` in the preset to the number of dense blocks to keep in each RRDB. The first ones are kept. The last
convolution of the last kept one is fitted, by least squares over samples, to the sum that all of them added. The result
replaces the checkpoint that the preset names, with `--overwrite`, or that of a copy (`--out`). Stage 2 can continue
from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dod_runtime.console import Parser, progress

from ..checkpoint import UNSTATED, copy_trained, load_checkpoint, read_metadata, save_checkpoint
from ..errors import ConfigError, run_command
from ..model.detail import RRDB, SCALE, DenseBlock
from ..model.dod import DOD
from ..training.arguments import Samples, add_checkpoint, add_output, add_source, samples_from
from ..training.output import open_output, part_path, training_preset
from ..training.processes import say
from ..training.schedule_arguments import add_schedule
from ..training.state import Schedule

__all__ = ["ConvolutionFit", "main", "parser", "prune"]

ROWS = 32
"""Number of rows of an image that are unfolded at a time."""
RIDGE = 1e-7
"""Regularization relative to the mean power of the features, for features that are always zero."""


class ConvolutionFit:
    """Least-squares fit of a 3 x 3 convolution to targets, by the normal equations."""

    def __init__(self) -> None:
        self.squares = self.products = torch.zeros(())
        self.power = 0.0

    def add(self, features: Tensor, target: Tensor) -> None:
        """Add an image.

        Args:
            features: input of the convolution, [1, C, H, W].
            target: output that it should have, [1, D, H, W].
        """
        padded = F.pad(features, (1, 1, 1, 1))
        for top in range(0, target.shape[2], ROWS):
            wanted = target[0, :, top : top + ROWS].flatten(1).double()
            taps = F.unfold(padded[:, :, top : top + ROWS + 2], 3)[0].double()
            taps = torch.cat([taps, torch.ones_like(taps[:1])])
            self.squares, self.products = self.squares + taps @ taps.T, self.products + taps @ wanted.T
            self.power += float(wanted.square().sum())

    def solve(self, conv: nn.Conv2d) -> float:
        """Set the weights of a convolution to the solution.

        Args:
            conv: convolution from C to D channels.

        Returns:
            The share of the targets' power that the convolution does not reproduce, 0 to 1.
        """
        ridge = RIDGE * self.squares.diagonal().mean() * torch.eye(len(self.squares)).to(self.squares)
        found = torch.linalg.solve(self.squares + ridge, self.products)
        conv.weight.copy_(found[:-1].T.reshape(conv.weight.shape))
        cast(Tensor, conv.bias).copy_(found[-1])
        left = self.power - 2 * (found * self.products).sum() + ((self.squares @ found) * found).sum()
        return max(0.0, float(left)) / self.power


@torch.no_grad()
def prune(whole: DOD, pruned: DOD, pairs: Samples, count: int, workers: int = 0) -> dict[str, float]:
    """Derive a model with fewer dense blocks, in place.

    Args:
        whole: trained model; it does not change.
        pruned: model whose preset differs only in `detail.dense`. Its weights are set.
        pairs: data set whose degraded images are fitted to.
        count: number of images, the first ones of the data set.
        workers: number of processes that load the images.

    Returns:
        The share of the dense blocks' sum that is not reproduced, by name of the RRDB.
    """
    copy_trained(whole, pruned)
    kept = {name: module for name, module in pruned.decoder.detail.named_modules() if isinstance(module, RRDB)}
    fits = {name: ConvolutionFit() for name in kept}

    def watch(name: str, rrdb: RRDB) -> None:
        keep = len(kept[name].blocks)
        last = cast(DenseBlock, rrdb.blocks[keep - 1])

        def hook(_: nn.Module, arguments: tuple[Tensor]) -> None:
            before = rrdb.blocks[: keep - 1](arguments[0])
            fits[name].add(last.features(before), (rrdb.blocks[keep - 1 :](before) - before) / SCALE)

        hooks.append(rrdb.register_forward_pre_hook(hook))

    hooks: list[Any] = []
    for name in kept:
        watch(name, cast(RRDB, whole.decoder.detail.get_submodule(name)))
    try:
        for batch in progress(DataLoader(pairs, 1, sampler=range(count), num_workers=workers), label="prune"):
            whole(batch[0])
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: fits[name].solve(cast(nn.Conv2d, cast(DenseBlock, rrdb.blocks[-1]).convs[-1]))
        for name, rrdb in kept.items()
    }


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog="dod-train prune",
        description="Remove dense blocks from the detail modules of a checkpoint, down to `detail.dense` of the "
        "preset, and fit the last convolution of those kept to the sum of all.",
    )
    add_source(parser)
    add_checkpoint(parser, "preset whose detail modules are pruned")
    add_output(
        parser,
        "The pruned checkpoint is written to the preset's folder.",
        "It replaces the existing one only with --overwrite.",
    )
    add = parser.add_argument_group("fit").add_argument
    add("--num-samples", type=int, default=48, metavar="N", help="number of images to fit to (default: %(default)s)")
    fraction = "fraction of the images that are not degraded, 0 to 1 (default: %(default)s)"
    add("--clean-fraction", type=float, default=0.1, metavar="FRACTION", help=fraction)
    texts = {"crop": "side of the images in px", "seed": "seed of the images"}
    add_schedule(parser, Schedule(crop=256, workers=2), ("crop", "seed", "workers"), texts)
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
    if preset.checkpoint is None or not preset.detail.enabled:
        raise ConfigError(f"preset {preset.name} has no detail modules to prune: set `checkpoint` and `detail.enabled`")
    if arguments.num_samples < 1:
        raise ConfigError(f"--num-samples {arguments.num_samples}: it must be at least 1")
    if arguments.crop < 1 or arguments.crop % preset.size_multiple:
        raise ConfigError(f"--crop {arguments.crop}: it must be a multiple of {preset.size_multiple}")
    folder, keep = part_path(preset, "checkpoint"), preset.detail.dense
    metadata = {**UNSTATED, **read_metadata(folder)}
    if not keep < metadata["dense"]:
        raise ConfigError(
            f"{folder} has {metadata['dense']} dense blocks in each RRDB, and detail.dense = {keep} in preset "
            f"{preset.name}: set it to fewer"
        )
    preset = open_output(arguments, preset, {"checkpoint": False})
    folder = part_path(preset, "checkpoint")
    pairs = samples_from(
        arguments, Schedule(crop=arguments.crop, seed=arguments.seed), preset.conditions, arguments.clean_fraction
    )
    whole = DOD.from_preset(replace(preset, detail=replace(preset.detail, dense=metadata["dense"])))
    load_checkpoint(whole, folder)
    pruned = DOD.from_preset(preset)
    missed = prune(whole, pruned, pairs, arguments.num_samples, arguments.workers)
    for name, share in missed.items():
        say(f"detail.{name}: {keep} of {metadata['dense']} dense blocks miss {share:.2%} of the sum of all")
    options = {name: getattr(arguments, name) for name in ("num_samples", "crop", "clean_fraction", "seed")}
    run = {"stage": "prune", "options": options, "missed": missed, "samples": pairs.identity}
    save_checkpoint(pruned, folder, torch.float16, training=[*metadata.get("training", []), run])
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
