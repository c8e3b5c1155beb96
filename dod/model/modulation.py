"""Multi-degradation feature modulation: crops of an image -> condition c -> gamma and beta of every conditional layer.

The paper's section "Multi-degradation Feature Modulation" and equation (5).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..errors import CheckpointError


def crop_indices(length: int, per_axis: int, size: int) -> list[list[int]]:
    """The pixel indices of the crops along one axis: `per_axis` lists of `size` indices into 0..length-1.

    The i-th crop starts at i (length - size) / (per_axis - 1), rounded half up; a single one is centred. An axis
    shorter than `size` is first extended at its end by reflection (without repeating the border).
    """
    extended = [_reflect(i, length) for i in range(max(length, size))]
    room = len(extended) - size
    if per_axis == 1:
        starts = [room // 2]
    else:
        starts = [(i * room + (per_axis - 1) // 2) // (per_axis - 1) for i in range(per_axis)]
    return [extended[start : start + size] for start in starts]


def _reflect(index: int, length: int) -> int:
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return index if index < length else 2 * (length - 1) - index


def native_crops(image: Tensor, count: int, size: int) -> Tensor:
    """K native-resolution crops at fixed positions, row by row. image: [B, 3, H, W]; returns [B, K, 3, R, R].

    count: K, a square number. No resize: it would destroy the noise and blur that c must tell apart.
    """
    per_axis = math.isqrt(count)
    rows = crop_indices(image.shape[-2], per_axis, size)
    columns = crop_indices(image.shape[-1], per_axis, size)
    return torch.stack([image[..., row, :][..., column] for row in rows for column in columns], dim=1)


class DiffusersHSpace(nn.Module):
    """The encoder and middle block of a diffusers `UNet2DModel` at t = 0; its decoder is dropped.

    x: [B, 3, R, R] in [-1, 1]; returns the middle block's output [B, C, R/2^k, R/2^k]. CheckpointError for a UNet that
    is not of the published DDPMs' kind.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        refused = {
            "skip-convolution blocks": any(hasattr(block, "skip_conv") for block in unet.down_blocks),
            "no middle block": unet.mid_block is None,
            "class labels": unet.class_embedding is not None,
            "a time embedding that is not positional": unet.config["time_embedding_type"] != "positional",
            "a centred input": unet.config["center_input_sample"],
        }
        if found := [what for what, present in refused.items() if present]:
            raise CheckpointError(f"a DDPM with {', '.join(found)} is not supported: use Down/AttnDown blocks alone")
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.down_blocks = unet.conv_in, unet.down_blocks
        self.mid_block = cast(nn.Module, unet.mid_block)
        self.channels: int = unet.config["block_out_channels"][-1]

    def embedding(self, x: Tensor) -> Tensor:
        """That of t = 0, [B, E], for a batch x."""
        timestep = torch.zeros(1, dtype=torch.long, device=x.device)
        return self.time_embedding(self.time_proj(timestep).to(x.dtype)).expand(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.embedding(x)
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(hidden_states=x, temb=embedding)
        return self.mid_block(x, embedding)


class ModulationNetwork(nn.Module):
    """Equation (5): gamma_i, beta_i = M([c, p_i]), for all N conditional layers at once, with one prompt p_i each.

    c: Linear, LayerNorm, ReLU; p: the same; concatenated; a last zero-initialised Linear gives (gamma - 1, beta).
    condition: [B, C] float32; returns [B, N, 2, r] float32.
    """

    def __init__(self, channels: int, layers: int, rank: int, condition_width: int, prompt_width: int) -> None:
        super().__init__()
        self.rank = rank
        self.prompts = nn.Parameter(torch.randn(layers, prompt_width))
        self.condition_in = _hidden(channels, condition_width)
        self.prompt_in = _hidden(prompt_width, prompt_width)
        self.out = nn.Linear(condition_width + prompt_width, 2 * rank)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, condition: Tensor) -> Tensor:
        batch, layers = condition.shape[0], self.prompts.shape[0]
        hidden = self.condition_in(condition)[:, None, :].expand(batch, layers, -1)
        prompts = self.prompt_in(self.prompts)[None].expand(batch, layers, -1)
        out = self.out(torch.cat([hidden, prompts], dim=-1)).reshape(batch, layers, 2, self.rank)
        return out + out.new_tensor([1.0, 0.0])[:, None]


def _hidden(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU())


class MFM(nn.Module):
    """crops [B, K, 3, R, R] in [-1, 1] -> condition c [B, C], modulation [B, N, 2, r]; both float32.

    c is the globally averaged h-space of a frozen DDPM at t = 0, averaged over the K crops.
    """

    def __init__(self, h_space: nn.Module, network: ModulationNetwork) -> None:
        super().__init__()
        self.h_space, self.network = h_space, network

    def condition(self, crops: Tensor) -> Tensor:
        """The condition c: [B, C] float32. Frozen: no gradient flows through it."""
        batch, count = crops.shape[:2]
        dtype = next(self.h_space.parameters()).dtype
        features = self.h_space(crops.flatten(0, 1).to(dtype))
        return features.float().mean(dim=(2, 3)).reshape(batch, count, -1).mean(dim=1)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        condition = self.condition(crops)
        return condition, self.network(condition)
