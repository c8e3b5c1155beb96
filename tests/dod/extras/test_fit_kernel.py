"""Fit of filters and gains to images of one blur."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dod.config import PostprocessConfig
from dod.extras.fit_kernel import fit_kernel
from dod.extras.moments import Moments, moments_of
from dod.model.postprocess import Gate, Postprocess
from dod.training.state import Schedule
from tests.dod.small_model import normal


def pair(seed: int, blurred: bool) -> tuple[Tensor, Tensor]:
    """Return a degraded and a clean image, [3, 32, 32] each. The clean one is smooth noise, equal in all colors."""
    noise = F.avg_pool2d(F.pad(normal(1, 1, 32, 32, seed=seed), (1, 1, 1, 1), mode="circular"), 3, 1)
    clean = noise[0].expand(3, -1, -1)
    degraded = F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), 3, 1)[0].expand(3, -1, -1)
    return (degraded if blurred else clean), clean


def test_blurred_images_gain_and_the_fit_is_part_of_the_weights() -> None:
    torch.manual_seed(0)
    config = PostprocessConfig(filters=4, taps=9, window=15, width=16)
    gate, post = Gate(6, config), Postprocess(config)
    nn.init.zeros_(gate.sharpness[-1].weight)  # type: ignore[arg-type]
    pairs = [pair(i, blurred=i % 4 != 0) for i in range(80)]
    with torch.no_grad():
        spectrum = torch.cat([gate.spectrum(degraded[None, None]) for degraded, _ in pairs])
    values = [torch.stack(each) for each in zip(*(moments_of(*each, config.taps) for each in pairs), strict=True)]
    blurred = torch.tensor([i % 4 != 0 for i in range(80)])
    schedule = Schedule(steps=150, batch_size=32, learning_rate=1e-2, warmup=0, save_every=150)
    log = fit_kernel(gate, post, Moments(spectrum, *values, blurred), schedule)
    assert log[-1]["blur_gain_db"] > 0.5
    degraded, clean = pair(99, blurred=True)
    with torch.no_grad():
        gains = gate.sharpness(gate.spectrum(degraded[None, None]) - gate.spectrum_mean)
        sharpened = post(degraded[None], degraded[None], torch.ones(1, 1), gains)[0]
    assert (clean - sharpened).square().mean() < 0.9 * (clean - degraded).square().mean()
