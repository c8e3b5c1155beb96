"""Objectives of the frozen base networks, before the stages: autoencoder, latent UNet and pixel DDPM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import FloatTensor, Tensor

from ..config import StepConfig
from ..model.dod import alpha_bars
from .loop import Objective
from .losses import noised

__all__ = [
    "AutoencoderObjective",
    "Batch",
    "LatentNoiseObjective",
    "PixelNoiseObjective",
    "noise_prediction",
    "posterior_of",
    "standard_normal",
    "trainable",
]

KL_WEIGHT = 1e-6
"""Weight of the autoencoder's KL term."""
TONE_WEIGHT = 2.0
"""Weight of the autoencoder's L1 of block means."""

Batch = Sequence[Tensor]
"""Tensors of a batch, as the data set returns them."""


class AutoencoderObjective(Objective):
    """L1 of pixels, L1 of block means, and a small KL term.

    A block is the square of pixels that one latent covers. A restoration in latent space cannot correct a latent that
    has every edge but not the mean color of its block. The batch is (degraded, clean, ...); the clean images are used.

    Args:
        vae: the autoencoder, which is trained.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = trainable(vae)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the terms "rec", "tone" and "kl".

        Args:
            batch: (degraded, clean, ...), images [B, 3, H, W] in -1 to 1.
            generator: CPU generator of the latents' noise.

        Returns:
            Weighted loss terms by name.
        """
        clean = batch[1].contiguous(memory_format=torch.channels_last)
        posterior = posterior_of(self.vae, clean)
        latent = posterior.mean + posterior.std * standard_normal(posterior.mean.shape, generator, clean.device)
        image = self.vae.decode(cast(FloatTensor, latent), return_dict=False)[0]
        error = image.float() - clean
        means = F.avg_pool2d(error, clean.shape[-1] // latent.shape[-1])
        return {
            "rec": error.abs().mean(),
            "tone": TONE_WEIGHT * means.abs().mean(),
            "kl": KL_WEIGHT * posterior.kl().mean(),
        }


class LatentNoiseObjective(Objective):
    """Epsilon objective in the latents of a frozen autoencoder, with a fixed prompt embedding.

    The batch is (degraded, clean, ...); the clean images are used.

    Args:
        unet: the UNet, which is trained.
        vae: the autoencoder.
        prompt: prompt embedding [1, L, D].
        step: noise schedule.
    """

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, prompt: Tensor, step: StepConfig) -> None:
        super().__init__()
        self.vae, self.unet = vae.requires_grad_(False), trainable(unet)
        self.register_buffer("prompt", prompt)
        self.register_buffer("abar", alpha_bars(step).float())

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the term "noise".

        Args:
            batch: (degraded, clean, ...), images [B, 3, H, W] in -1 to 1.
            generator: CPU generator of timesteps and noise.

        Returns:
            The loss by name.
        """
        with torch.no_grad():
            latent = posterior_of(self.vae, batch[1]).mode().float() * self.vae.config["scaling_factor"]
        text = cast(Tensor, self.prompt).expand(len(latent), -1, -1)
        abar = cast(Tensor, self.abar)
        return {"noise": noise_prediction(lambda x, t: self.unet(x, t, text).sample, latent, abar, generator)}


class PixelNoiseObjective(Objective):
    """Epsilon objective of a pixel DDPM (Ho et al. 2020) with linear betas from 1e-4 to 0.02.

    The batch is (degraded, ...); images are used as they come, degraded if the data set degrades them.

    Args:
        ddpm: the DDPM, which is trained.
    """

    def __init__(self, ddpm: UNet2DModel) -> None:
        super().__init__()
        self.ddpm = trainable(ddpm)
        self.register_buffer("abar", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0))

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the term "noise".

        Args:
            batch: (degraded, ...), images [B, 3, H, W] in -1 to 1.
            generator: CPU generator of timesteps and noise.

        Returns:
            The loss by name.
        """
        abar = cast(Tensor, self.abar)
        return {"noise": noise_prediction(lambda x, t: self.ddpm(x, t).sample, batch[0], abar, generator)}


def noise_prediction(
    predict: Callable[[Tensor, Tensor], Tensor], x0: Tensor, abar: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the loss of a noise prediction (Ho et al. 2020, equation (14)).

    It is MSE(eps, predict(sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, t)) with uniform t.

    Args:
        predict: returns the predicted eps of noisy [B, C, H, W] at timesteps [B].
        x0: clean images or latents [B, C, H, W].
        abar: cumulative products of 1 - beta [T].
        generator: CPU generator of t and eps.

    Returns:
        A scalar.
    """
    t = torch.randint(0, len(abar), (len(x0),), generator=generator).to(x0.device)
    eps = standard_normal(x0.shape, generator, x0.device)
    noisy = noised(x0, eps, abar[t][:, None, None, None]).contiguous(memory_format=torch.channels_last)
    return F.mse_loss(predict(noisy, t).float(), eps)


def posterior_of(vae: AutoencoderKL, image: Tensor) -> DiagonalGaussianDistribution:
    """Return the encoder's distribution over latents, without the scaling factor.

    Args:
        vae: the autoencoder.
        image: [B, 3, H, W] in -1 to 1.

    Returns:
        The distribution.
    """
    return cast(DiagonalGaussianDistribution, vae.encode(image, return_dict=False)[0])


def trainable(model: Any) -> Any:
    """Put a model in training mode with trainable parameters, in channels-last memory format.

    Args:
        model: the model, changed in place.

    Returns:
        The model.
    """
    return model.to(memory_format=torch.channels_last).requires_grad_(True).train()


def standard_normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw standard normal values on the CPU, so that runs on different devices agree, and move them to a device.

    Args:
        shape: shape of the values.
        generator: CPU generator.
        device: device of the result.

    Returns:
        float32 tensor.
    """
    return torch.randn(tuple(shape), generator=generator).to(device)
