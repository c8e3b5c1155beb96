"""Fit of the sharpening filters, and of the gains that the gate predicts for them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dod_runtime.console import progress

from ..data.dataset import CLEAN
from ..model.dod import DOD
from ..model.postprocess import Gate, Postprocess
from ..training.arguments import Samples
from ..training.processes import say
from ..training.state import Schedule
from .fitting import run_with_dropout, split, step
from .moments import Moments, inverse_filters, moments_of, turned_orders, without_mean

__all__ = ["fit_kernel", "measure_moments"]

TOLERANCE = 0.02
"""Remaining share of a blurred image's error below which a further reduction counts little."""
CLEAN_WEIGHT, CLEAN_DB = 3.0, 40.0
"""Weight of a change to a clean image, and the PSNR in dB of the change at which its loss equals the weight."""
DROPOUT = 0.1
"""Dropout of the sharpness network during the fit."""


class _MomentsDataset(Dataset[tuple[Tensor, ...]]):
    """Spectrum, moments and a flag that is True for a blurred image, for each pair of blurred or clean images."""

    def __init__(self, pairs: Samples, model: DOD) -> None:
        self.pairs, self.model, self.gate = pairs, model, cast(Gate, model.gate)
        self.taps = cast(Postprocess, model.postprocess).filters.kernel_size[0]

    @torch.no_grad()
    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        degraded, clean, degradation = self.pairs[i]
        spectrum = self.gate.spectrum(self.model.crops(degraded[None]))[0]
        blurred = torch.tensor(self.pairs.names[degradation] != CLEAN)
        return spectrum, *moments_of(degraded, clean, self.taps), blurred


def measure_moments(pairs: Samples, model: DOD, count: int, workers: int = 0) -> Moments:
    """Measure the moments of pairs of images.

    Args:
        pairs: data set of blurred and clean images.
        model: model with post-processing.
        count: number of pairs, the first ones of the data set.
        workers: number of processes that load the pairs.

    Returns:
        The moments.
    """
    loader = DataLoader(_MomentsDataset(pairs, model), 32, sampler=range(count), num_workers=workers)
    batches = list(progress(loader, label="moments"))
    return Moments(*(torch.cat(values) for values in zip(*batches, strict=True)))


def fit_kernel(gate: Gate, post: Postprocess, moments: Moments, schedule: Schedule) -> list[dict[str, Any]]:
    """Fit the filters and the gate's sharpness network, in place.

    The loss is the logarithm of the remaining error of a blurred image, and the change of a clean one.

    Args:
        gate: gate whose sharpness network is fitted.
        post: post-processing whose filters are fitted.
        moments: moments of blurred and clean images.
        schedule: length and learning rate.

    Returns:
        The log, with the mean gain in dB on blurred images (of the same photographs) that are not fitted to.
    """
    filters, scale = inverse_filters(*post.filters.weight.shape[::2])
    post.filters.weight.data.copy_(filters)
    mean, spread = moments.spectrum.mean(0), moments.spectrum.std()
    orders = turned_orders(int(gate.waves.shape[-1]))
    fitted, held_back = split(len(moments.squared))
    unseen = moments.select(held_back)
    dropout = nn.Dropout(DROPOUT)
    groups: list[dict[str, Any]] = [
        {"params": [*gate.sharpness.parameters()], "lr_multiplier": 1.0},
        {"params": [post.filters.weight], "lr_multiplier": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)

    def kernels_of(spectrum: Tensor) -> Tensor:
        gains = run_with_dropout(gate.sharpness, (spectrum - mean) / spread, dropout) * scale
        return torch.einsum("nf,fij->nij", gains, without_mean(post.filters.weight[:, 0]))

    def gain() -> float:
        dropout.eval()
        with torch.no_grad():
            gains = 10 * (unseen.squared / unseen.remaining_error(kernels_of(unseen.spectrum))).log10()
        dropout.train()
        return float(gains[unseen.blurred].mean())

    log = []
    for index in progress(range(schedule.steps), label="kernel"):
        turn = int(torch.randint(8, ()))
        batch = moments.select(fitted[torch.randint(len(fitted), (schedule.batch_size,))], turn, orders[turn])
        kernels = kernels_of(batch.spectrum)
        sharper = (batch.remaining_error(kernels) / batch.squared + TOLERANCE).log()
        changed = CLEAN_WEIGHT * batch.change(kernels) / (12 * 10 ** (-CLEAN_DB / 10))
        step(optimizer, torch.where(batch.blurred, sharper, changed).mean(), schedule, index)
        if (index + 1) % schedule.save_every == 0 or index + 1 == schedule.steps:
            log.append({"step": index + 1, "blur_gain_db": gain()})
            say(f"step {index + 1}: {log[-1]['blur_gain_db']:+.2f} dB on blurred samples that are not fitted to")
    with torch.no_grad():  # fold the standardization before the network and the scale after it into its weights
        first, last = cast(nn.Linear, gate.sharpness[0]), cast(nn.Linear, gate.sharpness[-1])
        gate.spectrum_mean.copy_(mean)
        first.weight /= spread
        last.weight *= scale[:, None]
        last.bias.mul_(scale)
        post.filters.weight.copy_(without_mean(post.filters.weight[:, 0])[:, None])
    return log
