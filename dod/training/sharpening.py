"""The sharpening filter fitted to pairs of pictures by their second moments, when both stages are over.

    python -m dod.training.sharpening --photographs photographs/train --preset mini

What a filter leaves of a picture's error is a quadratic form in the filter: its coefficients, the correlations of luma
and error at each distance, are a few hundred numbers for a picture of any size. So each pair is seen once, and what
chooses the filter learns from its moments in minutes. It reads and writes the checkpoint that the preset names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.kernels import random_kernel
from ..errors import ConfigError, run_command
from ..sharpening import Sharpening
from .apart import apart, apart_parser, find_colours, seen_once, set_apart, turned_orders, turned_square
from .arguments import Samples
from .loop import say
from .state import Schedule

BLUR = "blur"
DEFAULTS = Schedule(steps=12000, batch=256, crop=384, learning_rate=2e-3, weight_decay=0.03, save_every=1000)
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
        luma, error = (turned_square(each[which], turn) for each in (self.luma, self.error))
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
    return Moments(*seen_once(_Measured(pairs, part), "moments", count, workers))


def fit(part: Sharpening, moments: Moments, kinds: Sequence[str], schedule: Schedule) -> list[dict[str, Any]]:
    """Fit filters and choice, in place: the logarithm of what is left of blurred pictures' error, and of the others no
    change. kinds: the names that `moments.kinds` count in. The log says how blur gains, in dB, on samples that are kept
    from the fit (of the same photographs)."""
    blurred, spread = kinds.index(BLUR), moments.levels.std()
    scale = begin(part)
    part.mean.data.copy_(moments.levels.mean(0))
    orders = turned_orders(int(part.waves.shape[-1]))
    rest, tried = set_apart(len(moments.kinds))
    shown = moments.taken(tried)
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = apart_parser("sharpening", "Fit the sharpening filter.", DEFAULTS)
    with apart(parser.parse_args(argv), "sharpening", DEFAULTS) as run:
        part = cast(Sharpening, run.part)
        if BLUR not in run.pairs.names:
            raise ConfigError(f"the preset has no condition {BLUR!r}: there is nothing to sharpen")
        psnr = find_colours(run, part.luma, lambda picture: picture.mean(0, keepdim=True))
        say(f"the luma comes out of the encoder's features with a PSNR of {psnr:.1f} dB")
        moments = measure(run.pairs, part, run.samples, run.schedule.workers)
        run.log = fit(part, moments, run.pairs.names, run.schedule)
    return 0


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


if __name__ == "__main__":
    raise SystemExit(run_command(main))
