"""Randomly initialized networks with the structures of Stable Diffusion 2.1 and of the published 256 px DDPMs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from ..config import BaseConfig, DDPMConfig, UNetConfig, VAEConfig

__all__ = ["new_ddpm", "new_unet", "new_vae", "random_prompt"]


def new_vae(config: VAEConfig) -> AutoencoderKL:
    """Return a VAE with the structure of Stable Diffusion's: image [B, 3, H, W] <-> latent [B, 4, H/8, W/8].

    Args:
        config: widths and depths.
    """
    levels = len(config.block_out_channels)
    structure: dict[str, Any] = {
        "block_out_channels": config.block_out_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "scaling_factor": config.scaling_factor,
    }
    return AutoencoderKL(**structure)


def new_unet(config: UNetConfig, latent_channels: int = 4) -> UNet2DConditionModel:
    """Return a UNet with the structure of SD 2.1's: latent [B, 4, h, w], timestep, prompt [B, T, D] -> noise.

    Args:
        config: widths and depths.
        latent_channels: number of channels of the latent and of the noise.
    """
    levels = len(config.block_out_channels)
    structure: dict[str, Any] = {
        "sample_size": config.sample_size,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.attention_heads,  # diffusers' name for the number of heads
        "cross_attention_dim": config.cross_attention_dim,
        "norm_num_groups": config.norm_num_groups,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**structure)


def new_ddpm(config: DDPMConfig) -> UNet2DModel:
    """Return a pixel DDPM with the structure of the published 256 px ones: image [B, 3, H, W], timestep -> noise.

    Args:
        config: widths and depths.
    """
    levels = len(config.block_out_channels)
    down = tuple("AttnDownBlock2D" if i in config.attention_levels else "DownBlock2D" for i in range(levels))
    up = tuple(block.replace("Down", "Up") for block in reversed(down))
    return UNet2DModel(
        sample_size=config.image_size,
        block_out_channels=config.block_out_channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def random_prompt(config: BaseConfig) -> Tensor:
    """Return a standard-normal prompt embedding, for a base that was trained without a text encoder.

    Args:
        config: seed, and the sizes T and D.

    Returns:
        The embedding, [1, T, D] float32, the same for the same seed.
    """
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randn(1, config.prompt_tokens, config.unet.cross_attention_dim, generator=generator)
