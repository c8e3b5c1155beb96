"""Fit of the gate's share to separable features."""

from __future__ import annotations

import torch

from dod.config import PostprocessConfig
from dod.extras.fit_gate import GateSamples, fit_gate
from dod.model.postprocess import Gate
from dod.training.state import Schedule
from tests.dod.small_model import normal


def test_the_share_separates_images_that_need_nothing_removed() -> None:
    torch.manual_seed(0)
    gate = Gate(6, PostprocessConfig(filters=3, taps=5, window=9, width=8))
    gate.passing[-1].reset_parameters()  # type: ignore[union-attr, operator]
    count, channels = 400, len(gate.other_mean)
    degradations = (torch.arange(count) % 3 == 0).long()
    passes = degradations == 1
    spectrum = normal(count, len(gate.spectrum_mean)) + 2
    other = normal(count, channels, seed=1) + 3 * passes[:, None]
    schedule = Schedule(steps=200, batch_size=32, learning_rate=1e-2, warmup=0, save_every=200)
    log = fit_gate(gate, GateSamples(spectrum, other, passes, degradations), ("rain", "blur"), schedule)
    shares = log[-1]["share"]
    assert shares["blur"] > 0.8 and shares["rain"] < 0.2
    with torch.no_grad():  # the standardisation is part of the fitted weights
        share = gate.passing(torch.cat([spectrum - gate.spectrum_mean, other - gate.other_mean], 1)).sigmoid()[:, 0]
    assert share[passes].mean() > 0.8 and share[~passes].mean() < 0.2
