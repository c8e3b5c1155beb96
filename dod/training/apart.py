"""What the parts of the decoder that are fitted apart from the stages have in common: `sharpening` and `bypass`.

Each learns from numbers that are taken of every sample once, without the rest of the model, when both stages are over.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checkpoint import LATER, load_checkpoint, save_checkpoint
from ..errors import ConfigError
from ..model import DOD
from ..sharpening import frequencies
from .arguments import Samples, add_output, add_source, samples_from
from .output import open_output, training_preset, was_fitted
from .state import Schedule

TRIED = 20
"""Of so many samples the last one is kept from the fit and tried afterwards."""
OPTIONS = ("steps", "batch", "crop", "learning_rate", "weight_decay", "seed", "workers", "save_every")
"""The fields of `Schedule` that are options here."""


@dataclass
class Run:
    """One fit. part: what is fitted, in place; samples: how many pairs are seen; log: what becomes of it, for JSON."""

    model: DOD
    part: nn.Module
    pairs: Samples
    samples: int
    schedule: Schedule
    log: list[dict[str, Any]] = field(default_factory=list)


def apart_parser(name: str, description: str, defaults: Schedule) -> ArgumentParser:
    """The options of the command that fits the part `name`."""
    parser = ArgumentParser(prog=f"python -m dod.training.{name}", description=description)
    add_source(parser)
    add_output(parser)
    add = parser.add_argument
    add("--preset", default="mini", help="name, folder or file; default mini")
    add("--samples", type=int, default=20000, help="pairs that are seen, each once; default 20000")
    add("--clean-fraction", type=float, default=0.1, help="of them, how many are left clean; default 0.1")
    for option in OPTIONS:
        value = getattr(defaults, option)
        add(f"--{option.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    return parser


@contextmanager
def apart(arguments: Namespace, name: str, defaults: Schedule) -> Iterator[Run]:
    """The preset's checkpoint, opened so that its part `name` can be fitted, which need not be in it yet; written, with
    the run's log, when the block is over. ConfigError for what cannot be fitted, before any sample is seen."""
    preset = training_preset(arguments)
    given = {option: getattr(arguments, option) for option in OPTIONS}
    schedule = Schedule(**{**asdict(defaults), **given})
    if getattr(preset.detail, name) is None or not preset.detail.enabled or preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} has no detail.{name} to be fitted: set it, and a checkpoint")
    if schedule.crop % preset.size_multiple:
        raise ConfigError(f"--crop {schedule.crop}: the model takes multiples of {preset.size_multiple}")
    if arguments.samples < TRIED:
        raise ConfigError(f"--samples {arguments.samples}: it must be at least {TRIED}")
    preset = open_output(arguments, preset, {"checkpoint": not was_fitted(preset, name)})
    folder = preset.folder / str(preset.checkpoint)
    model = DOD.from_preset(preset)
    order = list(LATER)
    training = load_checkpoint(model, folder, lacking=order[order.index(name) :]).get("training", [])
    pairs = samples_from(arguments, schedule, preset.conditions, arguments.clean_fraction)
    torch.manual_seed(schedule.seed)
    part = cast(nn.Module, getattr(model.decoder, name))
    for layer in cast(nn.Sequential, part.choice):
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    run = Run(model, part, pairs, arguments.samples, schedule)
    yield run
    options = {"samples": run.samples, "clean_fraction": arguments.clean_fraction}
    done = {"stage": name, "schedule": given, "options": options, "log": run.log, "samples": pairs.identity}
    save_checkpoint(model, folder, torch.float16, training=[*training, done])


def seen_once(samples: Dataset[tuple[Tensor, ...]], what: str, count: int, workers: int) -> list[Tensor]:
    """The first `count` samples, each of their tensors stacked."""
    loader = DataLoader(samples, 32, sampler=range(count), num_workers=workers)
    batches = list(tqdm(loader, what, unit="batch", disable=None))
    return [torch.cat(values) for values in zip(*batches, strict=True)]


def set_apart(count: int) -> tuple[Tensor, Tensor]:
    """The indices of the samples that are fitted, and of those that are tried."""
    tried = torch.arange(count) % TRIED == TRIED - 1
    return (~tried).nonzero()[:, 0], tried.nonzero()[:, 0]


@torch.no_grad()
def find_colours(run: Run, layer: nn.Conv2d, wanted: Callable[[Tensor], Tensor], count: int = 24) -> float:
    """Fit the 1 x 1 layer that takes `wanted` of the degraded picture out of the encoder's features; the PSNR in dB."""
    features, targets = [], []
    for i in range(count):
        degraded = run.pairs[i][0]
        features.append(run.model.encoder(degraded[None])[1][0][0].flatten(1).T.double())
        targets.append(wanted(degraded).flatten(1).T.double())
    x, y = torch.cat(features), torch.cat(targets)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    found = torch.linalg.lstsq(x, y).solution
    layer.weight.copy_(found[:-1].T.reshape(layer.weight.shape))
    cast(Tensor, layer.bias).copy_(found[-1])
    return float(10 * (4 / (x @ found - y).square().mean()).log10())


def turned_square(values: Tensor, turn: int) -> Tensor:
    """[N, a, a], turned by quarters and mirrored: one of eight ways."""
    values = torch.rot90(values, turn % 4, (1, 2))
    return values.flip(2) if turn >= 4 else values


def turned_orders(window: int) -> list[Tensor]:
    """For each of eight ways to turn a picture: where the levels of the turned one's periodogram are among its own."""
    return [turned_order(frequencies(window), turn) for turn in range(8)]


def turned_order(grid: Tensor, turn: int) -> Tensor:
    """As `turned_orders`, for frequencies [F, 2]: [F]."""
    reach = int(grid.abs().max())
    places = torch.full((1, 2 * reach + 1, 2 * reach + 1), -1)
    for sign in (1, -1):
        y, x = (sign * grid + reach).unbind(1)
        places[0, y, x] = torch.arange(len(grid))
    y, x = (grid + reach).unbind(1)
    return turned_square(places, turn)[0, y, x]
