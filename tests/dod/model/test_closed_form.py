"""Closed form of the one step, compared with diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from dod.config import StepConfig
from dod.model.closed_form import alpha_bar, one_step
from tests.dod.small_model import normal, snr_db

SCHEDULERS = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}


def predicted_x0(name: str, latent: Tensor, eps: Tensor) -> Tensor:
    """Return the clean latent that a diffusers scheduler predicts at t = 999."""
    scheduler = SCHEDULERS[name](
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    )
    scheduler.set_timesteps(1000)
    return scheduler.step(eps, 999, latent).pred_original_sample


def test_alpha_bar_and_the_factor_of_sd() -> None:
    abar = alpha_bar(StepConfig())
    assert abar == pytest.approx(0.0046601, abs=5e-8)
    assert abar**-0.5 == pytest.approx(14.6488, abs=5e-5)
    assert (1 - abar) ** 0.5 == pytest.approx(0.997667, abs=5e-7)
    product = 1.0
    for i in range(1000):
        product *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2
    assert abar == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_closed_form_is_a_schedulers_prediction(name: str) -> None:
    latent, eps = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    found = one_step(latent, eps, alpha_bar(StepConfig()))
    assert snr_db(predicted_x0(name, latent, eps), found) >= 90
    assert snr_db(14.6488 * (latent.double() - 0.997667 * eps.double()), found) >= 90


def test_closed_form_is_computed_in_float32() -> None:
    latent, eps = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    found = one_step(latent, eps.half(), 0.0046601)
    assert found.dtype == torch.float32
    expected = (latent.double() - (1 - 0.0046601) ** 0.5 * eps.half().double()) / 0.0046601**0.5
    assert snr_db(expected, found) >= 120
