"""What decides which pictures go past the model, fitted to how pictures are degraded, when both stages are over.

    python -m dod.training.bypass --photographs photographs/train --preset mini --misty 0.3 --more blur haze low-light

Whether anything lies over a picture is seen in the picture alone: in its periodogram and its histogram, a few hundred
numbers. So the rest of the model is not run, each pair is seen once, and a classifier learns from these in minutes.
It reads and writes the checkpoint that the preset names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..bypass import Bypass
from ..data.dataset import CLEAN
from ..errors import ConfigError, run_command
from ..sharpening import Sharpening
from .apart import apart, apart_parser, find_colours, seen_once, set_apart, turned_orders
from .arguments import Samples
from .loop import say
from .state import Schedule

PAST = ("blur", CLEAN)
"""What goes past the model: nothing lies over it."""
PRICE = 5.0
"""How much dearer it is to let past what was to be restored: a hazy picture then loses all that the model gains."""
NOISE, DROPPED = 0.1, 0.2
"""The deviation of what is added to each number, whose own is 1, and the share of dropout, while it learns."""
DEFAULTS = Schedule(steps=1500, batch=256, crop=448, learning_rate=1e-3, weight_decay=0.1, save_every=300)


@dataclass(frozen=True)
class Seen:
    """levels [N, F]: of the periodogram; histogram [N, 2 S]; kinds [N]: what each is degraded by."""

    levels: Tensor
    histogram: Tensor
    kinds: Tensor


class _Looked(Dataset[tuple[Tensor, ...]]):
    """Each degraded picture of a data set as what decides of it."""

    def __init__(self, pairs: Samples, sharpening: Sharpening, part: Bypass) -> None:
        self.pairs, self.sharpening, self.part = pairs, sharpening, part

    @torch.no_grad()
    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        degraded, _, kind = self.pairs[i]
        levels = self.sharpening.levels(degraded.mean(0)[None, None])[0]
        return levels, self.part.histogram(degraded[None])[0], torch.tensor(kind)


def look(pairs: Samples, sharpening: Sharpening, part: Bypass, count: int, workers: int = 0) -> Seen:
    """What is seen of the first `count` pictures of a data set."""
    return Seen(*seen_once(_Looked(pairs, sharpening, part), "pictures", count, workers))


def fit(part: Bypass, seen: Seen, kinds: Sequence[str], schedule: Schedule, window: int) -> list[dict[str, Any]]:
    """Fit the choice, in place, to tell what goes past: cross entropy, with `PRICE`. kinds: the names that `seen.kinds`
    count in; window: of the periodogram. The log says how much of each kind goes past, on samples that are kept from
    the fit (of the same photographs)."""
    numbers = torch.cat([seen.levels, seen.histogram], 1)
    mean, spread = numbers.mean(0), numbers.std(0).clamp(min=NOISE)
    passes = torch.tensor([name in PAST for name in kinds])[seen.kinds]
    behind = torch.arange(seen.levels.shape[1], numbers.shape[1])
    orders = [torch.cat([order, behind]) for order in turned_orders(window)]
    rest, tried = set_apart(len(seen.kinds))
    drop = nn.Dropout(DROPPED)
    optimiser = torch.optim.AdamW(part.choice.parameters(), weight_decay=schedule.weight_decay)

    def logits(some: Tensor) -> Tensor:
        x = (some - mean) / spread
        for layer in part.choice:
            x = drop(layer(x)) if isinstance(layer, nn.ReLU) else layer(x)
        return x[:, 0]

    def past() -> dict[str, float]:
        drop.eval()
        with torch.no_grad():
            shares = logits(numbers[tried]).sigmoid()
        drop.train()
        of = seen.kinds[tried]
        return {name: float(shares[of == i].mean()) for i, name in enumerate(kinds) if (of == i).any()}

    log = []
    for step in tqdm(range(schedule.steps), "bypass", unit="step", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        which = rest[torch.randint(len(rest), (schedule.batch,))]
        some = numbers[which][:, orders[int(torch.randint(8, ()))]]
        found, right = logits(some + NOISE * spread * torch.randn_like(some)), passes[which]
        price = torch.where(right, 1.0, PRICE)
        loss = F.binary_cross_entropy_with_logits(found, right.float(), price)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(part.choice.parameters(), schedule.clip)
        optimiser.step()
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            log.append({"step": step + 1, "loss": float(loss.detach()), "past": past()})
            shares = ", ".join(f"{name} {share:.2f}" for name, share in log[-1]["past"].items())
            say(f"step {step + 1}: loss {log[-1]['loss']:.3f}; goes past where it is tried: {shares}")
    with torch.no_grad():  # what was put before the network goes into it
        part.mean.copy_(mean)
        cast(nn.Linear, part.choice[0]).weight /= spread
    return log


def main(argv: Sequence[str] | None = None) -> int:
    parser = apart_parser("bypass", "Fit what decides which pictures go past the model.", DEFAULTS)
    with apart(parser.parse_args(argv), "bypass", DEFAULTS) as run:
        part, sharpening, names = (
            cast(Bypass, run.part),
            cast(Sharpening, run.model.decoder.sharpening),
            run.pairs.names,
        )
        if not set(names) - set(PAST):
            raise ConfigError(f"{', '.join(names)}: all of them go past the model, there is nothing to tell")
        psnr = find_colours(run, part.colours, lambda picture: picture)
        say(f"the colours come out of the encoder's features with a PSNR of {psnr:.1f} dB")
        seen = look(run.pairs, sharpening, part, run.samples, run.schedule.workers)
        run.log = fit(part, seen, names, run.schedule, int(sharpening.waves.shape[-1]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
