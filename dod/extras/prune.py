"""Detail modules of fewer dense blocks, from a trained model's: what they cost is nearly all that a decoder costs.

    python -m dod.extras.prune --photographs photographs/train --preset mini

Set `detail.dense` in the preset to how many are to be left in each RRDB. The first ones stay; the last convolution of
the last that stays is fitted, by least squares over samples, to what all of them added. It replaces the checkpoint that
the preset names, with `--overwrite`, or that of a copy (`--out`); stage 2 can go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dod_runtime.console import Parser

from ..checkpoint import UNSTATED, copy_trained, load_checkpoint, read_metadata, save_checkpoint
from ..errors import ConfigError, run_command
from ..model.detail import RRDB, SCALE, DenseBlock
from ..model.dod import DOD
from ..training.arguments import Samples, add_output, add_source, samples_from
from ..training.output import open_output, part_path, training_preset
from ..training.processes import say
from ..training.state import Schedule

ROWS = 32
"""Of an image's features so many rows at a time are unfolded."""
RIDGE = 1e-7
"""Of the features' mean power: what is added to each, so that what is always zero has an answer."""


class Fit:
    """The 3 x 3 convolution that comes nearest to targets, of the features before it, by the normal equations."""

    def __init__(self) -> None:
        self.squares = self.products = torch.zeros(())
        self.power = 0.0

    def add(self, features: Tensor, target: Tensor) -> None:
        """features: [1, C, H, W]; target: [1, D, H, W]."""
        padded = F.pad(features, (1, 1, 1, 1))
        for top in range(0, target.shape[2], ROWS):
            wanted = target[0, :, top : top + ROWS].flatten(1).double()
            taps = F.unfold(padded[:, :, top : top + ROWS + 2], 3)[0].double()
            taps = torch.cat([taps, torch.ones_like(taps[:1])])
            self.squares, self.products = self.squares + taps @ taps.T, self.products + taps @ wanted.T
            self.power += float(wanted.square().sum())

    def solve(self, conv: nn.Conv2d) -> float:
        """Fill the convolution; the share of the targets' power that it misses."""
        ridge = RIDGE * self.squares.diagonal().mean() * torch.eye(len(self.squares)).to(self.squares)
        found = torch.linalg.solve(self.squares + ridge, self.products)
        conv.weight.copy_(found[:-1].T.reshape(conv.weight.shape))
        cast(Tensor, conv.bias).copy_(found[-1])
        left = self.power - 2 * (found * self.products).sum() + ((self.squares @ found) * found).sum()
        return max(0.0, float(left)) / self.power


@torch.no_grad()
def prune(whole: DOD, pruned: DOD, pairs: Samples, count: int, workers: int = 0) -> dict[str, float]:
    """Fill `pruned`, whose preset differs in `detail.dense` alone, from `whole`; nothing of this one changes.

    Of each RRDB by name: the share of what its dense blocks add that is missed, over `count` samples.
    """
    copy_trained(whole, pruned)
    left = {name: module for name, module in pruned.decoder.detail.named_modules() if isinstance(module, RRDB)}
    fits = {name: Fit() for name in left}

    def watch(name: str, rrdb: RRDB) -> None:
        stay = len(left[name].blocks)
        last = cast(DenseBlock, rrdb.blocks[stay - 1])

        def hook(_: nn.Module, arguments: tuple[Tensor]) -> None:
            before = rrdb.blocks[: stay - 1](arguments[0])
            fits[name].add(last.features(before), (rrdb.blocks[stay - 1 :](before) - before) / SCALE)

        hooks.append(rrdb.register_forward_pre_hook(hook))

    hooks: list[Any] = []
    for name in left:
        watch(name, cast(RRDB, whole.decoder.detail.get_submodule(name)))
    try:
        for batch in tqdm(DataLoader(pairs, 1, sampler=range(count), num_workers=workers), "prune", disable=None):
            whole(batch[0])
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: fits[name].solve(cast(nn.Conv2d, cast(DenseBlock, rrdb.blocks[-1]).convs[-1]))
        for name, rrdb in left.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="dod-train prune", description="Take dense blocks from detail modules.")
    add_source(parser)
    add_output(parser)
    add = parser.add_argument
    add("--checkpoint", default="mini", help="name, folder or file, whose detail.dense is how many stay; default mini")
    add("--num-samples", type=int, default=48, help="images that the rest is fitted to; default 48")
    add("--crop", type=int, default=256, help="their side in px; default 256")
    add("--clean-fraction", type=float, default=0.1, help="of them, how many are left clean; default 0.1")
    add("--seed", type=int, default=0, help="default 0")
    add("--workers", type=int, default=2, help="default 2")
    arguments = parser.parse_args(argv)
    preset = training_preset(arguments)
    if preset.checkpoint is None or not preset.detail.enabled:
        raise ConfigError(f"preset {preset.name} has no checkpoint with detail modules: there is nothing to prune")
    if arguments.num_samples < 1 or arguments.crop < 1 or arguments.crop % preset.size_multiple:
        raise ConfigError(
            f"--num-samples {arguments.num_samples} --crop {arguments.crop}: at least one, of a multiple of "
            f"{preset.size_multiple} px"
        )
    folder, stay = part_path(preset, "checkpoint"), preset.detail.dense
    metadata = {**UNSTATED, **read_metadata(folder)}
    if not stay < metadata["dense"]:
        raise ConfigError(
            f"{folder} has {metadata['dense']} dense blocks in each RRDB, and detail.dense of preset {preset.name} "
            f"keeps {stay}: set it to fewer"
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
        say(f"detail.{name}: {stay} of {metadata['dense']} dense blocks miss {share:.2%} of what all of them added")
    options = {name: getattr(arguments, name) for name in ("num_samples", "crop", "clean_fraction", "seed")}
    done = {"stage": "prune", "options": options, "missed": missed, "samples": pairs.identity}
    save_checkpoint(pruned, folder, torch.float16, training=[*metadata.get("training", []), done])
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
