"""Encoder of OpenAI's ADM (guided diffusion) UNet, with the key names of the published checkpoint.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis": the unconditional 256 x 256 model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ADMEncoder", "AttentionBlock", "ResBlock"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class ResBlock(nn.Module):
    """Residual block whose time embedding scales and shifts the second normalization.

    Args:
        channels: number of input channels.
        embedding: width of the time embedding.
        out_channels: number of output channels.
        down: halve height and width by average pooling.
    """

    def __init__(self, channels: int, embedding: int, out_channels: int, down: bool = False) -> None:
        super().__init__()
        self.down = down
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.out_layers = nn.Sequential(
            _norm(out_channels), nn.SiLU(), nn.Identity(), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: [B, channels, H, W].
            embedding: time embedding, [B, embedding].

        Returns:
            [B, out_channels, H, W], or [B, out_channels, H/2, W/2] with `down`.
        """
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        return self.combine(x, lambda h: self.out_layers[0](h) * (1 + scale) + shift)

    def combine(self, x: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """Run the block with a given second normalization.

        Args:
            x: input, [B, channels, H, W].
            normalize: replacement of the scale-shift normalization, [B, out_channels, H, W] to the same shape.

        Returns:
            The output of the block.
        """
        h = self.in_layers[1](self.in_layers[0](x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = normalize(self.in_layers[2](h))
        return self.skip_connection(x) + self.out_layers[3](self.out_layers[1](h))


class AttentionBlock(nn.Module):
    """Multi-head self-attention over positions.

    The channels of `qkv` are split into heads first and into q, k and v second, as in the published checkpoint.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the attention to its input.

        Args:
            x: [B, channels, H, W].

        Returns:
            The sum, of the same shape.
        """
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        qkv = self.qkv(self.norm(flat)).reshape(batch, self.heads, 3, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(flat.shape)
        return (flat + self.proj_out(attended)).reshape(x.shape)


class _Stage(nn.ModuleList):
    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ADMEncoder(nn.Module):
    """Encoder and middle block of the ADM UNet at t = 0.

    The defaults are those of `256x256_diffusion_uncond.pt`: six levels, 1,024 output channels.

    Args:
        model_channels: width of the first level in channels.
        multipliers: width of each level as a multiple of `model_channels`.
        res_blocks: number of residual blocks per level.
        attention_factors: downsampling factors of the levels with attention.
        head_channels: channels per attention head.

    Attributes:
        channels: number of output channels.
    """

    def __init__(
        self,
        model_channels: int = 256,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        res_blocks: int = 2,
        attention_factors: tuple[int, ...] = (8, 16, 32),
        head_channels: int = 64,
    ) -> None:
        super().__init__()
        self.model_channels = model_channels
        width = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, width), nn.SiLU(), nn.Linear(width, width))
        channels = multipliers[0] * model_channels
        self.input_blocks = nn.ModuleList([_Stage([nn.Conv2d(3, channels, 3, padding=1)])])
        for level, multiplier in enumerate(multipliers):
            for _ in range(res_blocks):
                stage = _Stage([ResBlock(channels, width, multiplier * model_channels)])
                channels = multiplier * model_channels
                if 2**level in attention_factors:
                    stage.append(AttentionBlock(channels, head_channels))
                self.input_blocks.append(stage)
            if level < len(multipliers) - 1:
                self.input_blocks.append(_Stage([ResBlock(channels, width, channels, down=True)]))
        self.middle_block = _Stage(
            [
                ResBlock(channels, width, channels),
                AttentionBlock(channels, head_channels),
                ResBlock(channels, width, channels),
            ]
        )
        self.channels = channels

    def embedding(self, x: Tensor) -> Tensor:
        """Return the embedding of the timestep t = 0, [B, 4 * model_channels].

        Args:
            x: batch whose size, dtype and device it gets.
        """
        half = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        angles = torch.zeros(1, 1, device=x.device) * frequencies
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype))
        return embedding.expand(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the h-space of images: the output of the middle block at t = 0.

        Args:
            x: [B, 3, R, R] in [-1, 1].

        Returns:
            [B, channels, R/2^k, R/2^k] for k + 1 levels.
        """
        embedding = self.embedding(x)
        for stage in self.input_blocks:
            x = stage(x, embedding)
        return self.middle_block(x, embedding)
