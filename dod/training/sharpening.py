"""The sharpening filter fitted to pairs of pictures by their second moments, when both stages are over.

    python -m dod.training.sharpening --photographs photographs/train --preset mini

What a filter leaves of a picture's error is a quadratic form in the filter: its coefficients, the correlations of luma
and error at each distance, are a few hundred numbers for a picture of any size. So each pair is seen once, and what
chooses the filter learns from its moments in minutes. It reads and writes the checkpoint that the preset names.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.kernels import random_kernel
from ..errors import ConfigError, run_command
from ..model import DOD
from ..sharpening import Sharpening, frequencies
from .arguments import Samples, add_source, preset_from, samples_from
from .loop import say
from .state import Schedule

BLUR = "blur"
TRIED = 20
"""Of so many samples the last one is kept from the fit and tried afterwards."""
KERNELS = 3000
"""Random kernels whose inverses are what the filters begin with."""
TOLERANCE = 0.02
"""Share of the error below which there is no hurry to lower it."""
ALONE, ALONE_DB = 3.0, 40.0
"""How dear it is to change what is not blurred; the PSNR at which a change of a clean picture is worth its error."""


@dataclass(frozen=True)
class Moments:
    """levels [N, F]: of the periodogram; luma [N, 2 t - 1, 2 t - 1]: 3 times its autocorrelation; error [N, t, t]: its
    correlation with the colours' sum of clean minus degraded; squared [N]: the square of that, of all colours; kinds
    [N]: what each is degraded by."""

    levels: Tensor
    luma: Tensor
    error: Tensor
    squared: Tensor
    kinds: Tensor

    def left(self, filters: Tensor) -> Tensor:
        """[N]: the squared error that is left when each luma, filtered with [N, t, t], is added to its picture."""
        return (self.squared - 2 * (filters * self.error).sum((1, 2)) + self.added(filters)).clamp(min=1e-9)

    def added(self, filters: Tensor) -> Tensor:
        """[N]: the square of what is added."""
        return (_autocorrelation(filters) * self.luma).sum((1, 2))

    def taken(self, which: Tensor, turn: int = 0, order: Tensor | None = None) -> Moments:
        """Some of them, as if the pictures had been turned: one of eight ways, which permutes the levels by `order`."""
        levels = self.levels[which] if order is None else self.levels[which][:, order]
        luma, error = (_turned(each[which], turn) for each in (self.luma, self.error))
        return Moments(levels, luma, error, self.squared[which], self.kinds[which])


class _Measured(Dataset[tuple[Tensor, ...]]):
    """Each pair of a data set as its moments."""

    def __init__(self, pairs: Samples, part: Sharpening) -> None:
        self.pairs, self.part, self.taps = pairs, part, part.filters.kernel_size[0]

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        degraded, clean, kind = self.pairs[i]
        error, luma = clean - degraded, degraded.mean(0)
        with torch.no_grad():
            levels = self.part.levels(luma[None, None])[0]
        squared = (error.square().mean() * len(error)).clamp(min=1e-6)  # a clean picture's too
        spectrum = torch.fft.rfft2(luma - luma.mean())
        against = torch.fft.rfft2((error - error.mean((1, 2), keepdim=True)).sum(0))
        reach, size = self.taps // 2, tuple(luma.shape)
        own = 3 * _lags(spectrum.abs().square(), size, self.taps - 1)
        return levels, own, _lags(against.conj() * spectrum, size, reach), squared, torch.tensor(kind)


def measure(pairs: Samples, part: Sharpening, count: int, workers: int = 0) -> Moments:
    """The moments of the first `count` pairs of a data set."""
    loader = DataLoader(_Measured(pairs, part), 32, sampler=range(count), num_workers=workers)
    batches = list(tqdm(loader, "moments", unit="batch", disable=None))
    return Moments(*(torch.cat(values) for values in zip(*batches, strict=True)))


def fit(part: Sharpening, moments: Moments, kinds: Sequence[str], schedule: Schedule) -> list[dict[str, Any]]:
    """Fit filters and choice, in place: the logarithm of what is left of blurred pictures' error, and of the others no
    change. kinds: the names that `moments.kinds` count in. The log says how blur gains, in dB, on samples that are kept
    from the fit (of the same photographs)."""
    blurred, spread = kinds.index(BLUR), moments.levels.std()
    scale = begin(part)
    part.mean.data.copy_(moments.levels.mean(0))
    orders = [_order(frequencies(int(part.waves.shape[-1])), turn) for turn in range(8)]
    rest, tried = (torch.arange(len(moments.kinds)) % TRIED != TRIED - 1).nonzero()[:, 0], slice(TRIED - 1, None, TRIED)
    shown = moments.taken(torch.arange(len(moments.kinds))[tried])
    drop = nn.Dropout(0.1)
    groups = [{"params": [*part.choice.parameters()], "rate": 1.0}, {"params": [part.filters.weight], "rate": 0.1}]
    optimiser = torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)

    def chosen(levels: Tensor) -> Tensor:
        x = (levels - part.mean.detach()) / spread
        for layer in part.choice:
            x = drop(layer(x)) if isinstance(layer, nn.ReLU) else layer(x)
        return torch.einsum("nr,rij->nij", x * scale, _without_mean(part.filters.weight[:, 0]))

    def gain() -> float:
        drop.eval()
        with torch.no_grad():
            gains = 10 * (shown.squared / shown.left(chosen(shown.levels))).log10()
        drop.train()
        return float(gains[shown.kinds == blurred].mean())

    log = []
    for step in tqdm(range(schedule.steps), "sharpening", unit="step", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step) * group["rate"]
        turn = int(torch.randint(8, ()))
        some = moments.taken(rest[torch.randint(len(rest), (schedule.batch,))], turn, orders[turn])
        filters = chosen(some.levels)
        allowed = torch.where(some.kinds == len(kinds) - 1, 12 * 10 ** (-ALONE_DB / 10), some.squared)
        sharper = (some.left(filters) / some.squared + TOLERANCE).log()
        loss = torch.where(some.kinds == blurred, sharper, ALONE * some.added(filters) / allowed).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], schedule.clip)
        optimiser.step()
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            log.append({"step": step + 1, "loss": float(loss.detach()), "blur_gain_db": gain()})
            say(
                f"step {step + 1}: loss {log[-1]['loss']:.3f}, blur {log[-1]['blur_gain_db']:+.2f} dB where it is tried"
            )
    with torch.no_grad():  # what was put before and after the network goes into it
        first, last = cast(nn.Linear, part.choice[0]), part.last
        first.weight /= spread
        last.weight *= scale[:, None]
        last.bias *= scale
        part.filters.weight.copy_(_without_mean(part.filters.weight[:, 0])[:, None])
    return log


@torch.no_grad()
def begin(part: Sharpening) -> Tensor:
    """Let the filters begin with what inverse filters of random kernels have in common (their mean, then principal
    components), and the choice with none of them. The deviation of each [R]: a unit for what is chosen."""
    count, _, taps, _ = part.filters.weight.shape
    rng, size, inverses = np.random.default_rng(1), 64, []
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    noise = 2e-3 * (radius / 0.1 + 0.05) ** 2  # over a photograph's power, which falls with the frequency's square
    for _ in range(KERNELS):
        drawn, kernel = random_kernel(rng), np.zeros((size, size))
        reach = drawn.shape[0] // 2
        kernel[: drawn.shape[0], : drawn.shape[0]] = drawn
        spectrum = np.fft.fft2(np.roll(kernel, (-reach, -reach), (0, 1)))
        inverse = np.fft.ifft2(np.conj(spectrum) / (np.abs(spectrum) ** 2 + noise)).real
        inverse[0, 0] -= 1  # the picture itself is there already
        inverses.append(np.roll(inverse, (taps // 2, taps // 2), (0, 1))[:taps, :taps].ravel())
    mean = np.mean(inverses, axis=0)
    _, values, vectors = np.linalg.svd(inverses - mean, full_matrices=False)
    if count - 1 > len(values):
        raise ConfigError(f"filters: {count} are more than {taps} x {taps} taps have room for")
    norm = np.linalg.norm(mean)
    filters = np.concatenate([mean[None] / norm, vectors[: count - 1]])
    part.filters.weight.copy_(torch.from_numpy(filters).view_as(part.filters.weight))
    for parameter in part.last.parameters():
        nn.init.zeros_(parameter)
    return torch.tensor([norm, *(values[: count - 1] / KERNELS**0.5)], dtype=torch.float32)


@torch.no_grad()
def find_luma(model: DOD, pairs: Samples, part: Sharpening, count: int = 24) -> float:
    """Fit the layer that takes the luma, the colours' mean, out of the encoder's features; its PSNR in dB."""
    features, lumas = [], []
    for i in range(count):
        degraded = pairs[i][0]
        features.append(model.encoder(degraded[None])[1][0][0].flatten(1).T.double())
        lumas.append(degraded.mean(0).flatten().double())
    x, y = torch.cat(features), torch.cat(lumas)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    found = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    part.luma.weight.copy_(found[:-1].view_as(part.luma.weight))
    cast(Tensor, part.luma.bias).copy_(found[-1:])
    return float(10 * (4 / (x @ found - y).square().mean()).log10())


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m dod.training.sharpening", description="Fit the sharpening filter.")
    add_source(parser)
    add = parser.add_argument
    add("--preset", default="mini", help="name, folder or file; default mini")
    add("--samples", type=int, default=20000, help="pairs whose moments are taken; default 20000")
    add("--clean-fraction", type=float, default=0.1, help="of them, how many are left clean; default 0.1")
    defaults = Schedule(
        steps=12000, batch=256, crop=384, learning_rate=2e-3, weight_decay=0.03, seed=0, save_every=1000
    )
    for name in ("steps", "batch", "crop", "learning_rate", "weight_decay", "seed", "workers", "save_every"):
        value = getattr(defaults, name)
        add(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    arguments = parser.parse_args(argv)
    preset, schedule = preset_from(arguments), Schedule(**_given(arguments, defaults))
    if preset.detail.sharpening is None or not preset.detail.enabled or preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} has no sharpening filter: set detail.sharpening, and a checkpoint")
    if BLUR not in preset.conditions:
        raise ConfigError(f"preset {preset.name} has no condition {BLUR!r}: there is nothing to sharpen")
    if schedule.crop % preset.size_multiple:
        raise ConfigError(f"--crop {schedule.crop}: the model takes multiples of {preset.size_multiple}")
    if arguments.samples < TRIED:
        raise ConfigError(f"--samples {arguments.samples}: it must be at least {TRIED}")
    folder = preset.folder / preset.checkpoint
    model = DOD.from_preset(preset)
    training = load_checkpoint(model, folder, unsharpened=True).get("training", [])
    pairs = samples_from(arguments, schedule, preset.conditions, arguments.clean_fraction)
    part = cast(Sharpening, model.decoder.sharpening)
    torch.manual_seed(schedule.seed)
    for layer in part.choice:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    say(f"the luma comes out of the encoder's features with a PSNR of {find_luma(model, pairs, part):.1f} dB")
    moments = measure(pairs, part, arguments.samples, schedule.workers)
    log = fit(part, moments, pairs.names, schedule)
    options = {"samples": arguments.samples, "clean_fraction": arguments.clean_fraction}
    used = {name: asdict(schedule)[name] for name in _given(arguments, defaults)}
    run = {"stage": "sharpening", "schedule": used, "options": options, "log": log, "samples": pairs.identity}
    save_checkpoint(model, folder, torch.float16, training=[*training, run])
    return 0


def _given(arguments: Namespace, defaults: Schedule) -> dict[str, Any]:
    """What the arguments say of a schedule."""
    return {name: value for name, value in vars(arguments).items() if name in asdict(defaults)}


def _without_mean(filters: Tensor) -> Tensor:
    """Filters [R, t, t] that leave brightness alone."""
    return filters - filters.mean((1, 2), keepdim=True)


def _autocorrelation(filters: Tensor) -> Tensor:
    """[N, t, t] -> [N, 2 t - 1, 2 t - 1]."""
    taps = filters.shape[-1]
    spectrum = torch.fft.rfft2(filters, s=(2 * taps, 2 * taps))
    whole = torch.fft.irfft2(spectrum.abs().square(), s=(2 * taps, 2 * taps))
    return torch.roll(whole, (taps - 1, taps - 1), (-2, -1))[..., :-1, :-1]


def _lags(spectrum: Tensor, size: tuple[int, ...], reach: int) -> Tensor:
    """The correlation [2 reach + 1, 2 reach + 1] of a cross spectrum, a mean over the pixels, at up to `reach` px."""
    whole = torch.fft.irfft2(spectrum, s=size) / (size[0] * size[1])
    return torch.roll(whole, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1].clone()


def _turned(values: Tensor, turn: int) -> Tensor:
    """[N, a, a], turned by quarters and mirrored: one of eight ways."""
    values = torch.rot90(values, turn % 4, (1, 2))
    return values.flip(2) if turn >= 4 else values


def _order(grid: Tensor, turn: int) -> Tensor:
    """Where the levels of a turned picture's frequencies [F, 2] are among those of the picture itself: [F]."""
    reach = int(grid.abs().max())
    places = torch.full((1, 2 * reach + 1, 2 * reach + 1), -1)
    for sign in (1, -1):
        y, x = (sign * grid + reach).unbind(1)
        places[0, y, x] = torch.arange(len(grid))
    y, x = (grid + reach).unbind(1)
    return _turned(places, turn)[0, y, x]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
