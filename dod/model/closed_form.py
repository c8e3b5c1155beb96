"""Closed form of the one diffusion step: from the noisy latent and the predicted noise to the restored latent."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import StepConfig

__all__ = ["alpha_bar", "alpha_bars", "one_step"]


def alpha_bars(step: StepConfig) -> Tensor:
    """Return abar_t, the cumulative products of 1 - beta_t, for every timestep.

    Args:
        step: schedule of scaled-linear betas, whose square roots are equally spaced.

    Returns:
        The products, [T] float64.
    """
    roots = torch.linspace(
        step.beta_start**0.5, step.beta_end**0.5, step.train_timesteps, dtype=torch.float64, device="cpu"
    )
    return torch.cumprod(1 - roots**2, dim=0)


def alpha_bar(step: StepConfig) -> float:
    """Return abar_t at the timestep of the one step.

    Args:
        step: timestep and schedule.

    Example:
        >>> round(alpha_bar(StepConfig()), 7)
        0.0046601
    """
    return float(alpha_bars(step)[step.timestep])


def one_step(latent: Tensor, eps: Tensor, abar: float) -> Tensor:
    """Return the restored latent z0 = (z - sqrt(1 - abar) eps) / sqrt(abar).

    At t = 999 this multiplies an error of eps by 14.6, so it is computed in float32.

    Args:
        latent: z, [B, 4, h, w].
        eps: predicted noise, [B, 4, h, w].
        abar: abar_t at the timestep of `eps`, in 0 to 1.

    Returns:
        z0, [B, 4, h, w] float32.
    """
    return (latent.float() - (1 - abar) ** 0.5 * eps.float()) / abar**0.5
