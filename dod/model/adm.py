"""The encoder half of OpenAI's ADM (guided diffusion) UNet, compact, under that checkpoint's own key names.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis": the 256 x 256 unconditional model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class ResBlock(nn.Module):
    """Residual block with scale-shift normalisation; `down` halves the size by average pooling."""

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
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        return self.combine(x, lambda h: self.out_layers[0](h) * (1 + scale) + shift)

    def combine(self, x: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """The block around its second normalisation."""
        h = self.in_layers[1](self.in_layers[0](x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = normalise(self.in_layers[2](h))
        return self.skip_connection(x) + self.out_layers[3](self.out_layers[1](h))


class AttentionBlock(nn.Module):
    """Self-attention over positions; heads are split before q, k and v (the published checkpoint's order)."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
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
    """`time_embed`, `input_blocks` and `middle_block` of the ADM UNet at t = 0.

    x: [B, 3, R, R] in [-1, 1]; returns the middle block's output [B, channels, R/32, R/32] for six levels.
    The defaults are those of `256x256_diffusion_uncond.pt` (1,024 channels).
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
        """That of t = 0, [B, 4 * model_channels], for a batch x."""
        fp16 = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(fp16, device=x.device) / fp16)
        angles = torch.zeros(1, 1, device=x.device) * frequencies
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype))
        return embedding.expand(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.embedding(x)
        for stage in self.input_blocks:
            x = stage(x, embedding)
        return self.middle_block(x, embedding)
