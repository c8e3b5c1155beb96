"""Fit of the share that the gate predicts: a classifier of images that need nothing removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dod_runtime.console import progress

from ..data.dataset import CLEAN
from ..model.dod import DOD
from ..model.modulation import native_crops
from ..model.postprocess import Gate
from ..training.arguments import Samples
from ..training.processes import say
from ..training.state import Schedule
from .fitting import run_with_dropout, split, step
from .moments import LEAST, turned_orders

__all__ = ["GateSamples", "fit_gate", "gate_samples"]

MISSED_WEIGHT = 5.0
"""Weight of a degraded image, which loses the whole gain of the model if it bypasses it."""
UNDEGRADED_DB = 40.0
"""PSNR in dB above which a degraded image counts as one that needs nothing removed."""
NOISE, DROPOUT = 0.1, 0.2
"""Standard deviation of the noise on standardized features, and dropout, during the fit."""


@dataclass(frozen=True)
class GateSamples:
    """Inputs and intended outputs of the gate for N images.

    Attributes:
        spectrum: logarithm of the periodogram, [N, L].
        other: histogram and condition c, [N, 2 S + C].
        passes: True for an image that needs nothing removed, [N].
        degradations: index of the degradation, [N].
    """

    spectrum: Tensor
    other: Tensor
    passes: Tensor
    degradations: Tensor


class _GateDataset(Dataset[tuple[Tensor, ...]]):
    """Spectrum, histogram, crops, degradation and squared error of each degraded image."""

    def __init__(self, pairs: Samples, model: DOD) -> None:
        self.pairs, self.model, self.gate = pairs, model, cast(Gate, model.gate)

    @torch.no_grad()
    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        degraded, clean, degradation = self.pairs[i]
        mfm = self.model.preset.mfm
        crops = native_crops(degraded[None], mfm.crops, mfm.crop_size)
        error = (clean - degraded).square().mean().clamp(min=LEAST)
        spectrum, histogram = self.gate.spectrum(crops)[0], self.gate.histogram(crops)[0]
        return spectrum, histogram, crops[0], torch.tensor(degradation), error


@torch.no_grad()
def gate_samples(pairs: Samples, model: DOD, count: int, workers: int = 0, precision: str = "fp32") -> GateSamples:
    """Compute the inputs of the gate.

    Args:
        pairs: data set of degraded and clean images.
        model: model with post-processing.
        count: number of images, the first ones of the data set.
        workers: number of processes that load the images.
        precision: precision of the MFM, "fp32" or "bf16".

    Returns:
        Inputs and intended outputs.
    """
    loader = DataLoader(_GateDataset(pairs, model), 4, sampler=range(count), num_workers=workers)
    post = model.preset.postprocess
    passing = torch.tensor([name in (*(post.passing if post else ()), CLEAN) for name in pairs.names])
    batches = []
    for spectrum, histogram, crops, degradations, error in progress(loader, label="gate inputs"):
        passes = passing[degradations] | (10 * (4 / error).log10() >= UNDEGRADED_DB)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            condition = model.mfm.condition(crops)
        batches.append((spectrum, torch.cat([histogram, condition], 1), passes, degradations))
    return GateSamples(*(torch.cat(values) for values in zip(*batches, strict=True)))


def fit_gate(gate: Gate, samples: GateSamples, names: Sequence[str], schedule: Schedule) -> list[dict[str, Any]]:
    """Fit the network that predicts the share, in place, by weighted cross entropy.

    `fit_kernel` has to run first: it sets the gate's `spectrum_mean`.

    Args:
        gate: gate whose network `passing` is fitted.
        samples: inputs and intended outputs.
        names: names of the degradations.
        schedule: length and learning rate.

    Returns:
        The log, with the mean share of each degradation on images (of the same photographs) that are not fitted to.
    """
    spectrum, other = samples.spectrum - gate.spectrum_mean.detach(), samples.other - samples.other.mean(0)
    features = torch.cat([spectrum, other], 1)
    center, spread = features.mean(0), features.std(0).clamp(min=0.02)
    unturned = torch.arange(spectrum.shape[1], features.shape[1])
    orders = [torch.cat([order, unturned]) for order in turned_orders(int(gate.waves.shape[-1]))]
    fitted, held_back = split(len(features))
    dropout = nn.Dropout(DROPOUT)
    optimizer = torch.optim.AdamW(gate.passing.parameters(), weight_decay=schedule.weight_decay)

    def logits(batch: Tensor) -> Tensor:
        return run_with_dropout(gate.passing, (batch - center) / spread, dropout)[:, 0]

    def shares() -> dict[str, float]:
        dropout.eval()
        with torch.no_grad():
            share, degradations = logits(features[held_back]).sigmoid(), samples.degradations[held_back]
        dropout.train()
        present = [(i, name) for i, name in enumerate(names) if (degradations == i).any()]
        return {name: float(share[degradations == i].mean()) for i, name in present}

    log = []
    for index in progress(range(schedule.steps), label="gate"):
        which = fitted[torch.randint(len(fitted), (schedule.batch_size,))]
        batch = features[which][:, orders[int(torch.randint(8, ()))]]
        predicted, intended = logits(batch + NOISE * spread * torch.randn_like(batch)), samples.passes[which]
        weights = torch.where(intended, 1.0, MISSED_WEIGHT)
        loss = F.binary_cross_entropy_with_logits(predicted, intended.float(), weights)
        step(optimizer, loss, schedule, index)
        if (index + 1) % schedule.save_every == 0 or index + 1 == schedule.steps:
            log.append({"step": index + 1, "loss": float(loss.detach()), "share": shares()})
            text = ", ".join(f"{name} {share:.2f}" for name, share in log[-1]["share"].items())
            say(f"step {index + 1}: loss {log[-1]['loss']:.3f}; mean share of samples that are not fitted to: {text}")
    with torch.no_grad():  # fold the standardization into the weights
        first = cast(nn.Linear, gate.passing[0])
        gate.other_mean.copy_(samples.other.mean(0))
        first.weight /= spread
        first.bias.sub_(first.weight @ center)
    return log
