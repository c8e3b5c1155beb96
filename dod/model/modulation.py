"""Multi-degradation feature modulation (MFM): image crops -> condition c -> gamma and beta of each conditional layer.

The section "Multi-degradation Feature Modulation" of the paper, and equation (5).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..errors import CheckpointError

__all__ = ["MFM", "DiffusersHSpace", "ModulationNetwork", "crop_indices", "native_crops"]


def crop_indices(length: int, per_axis: int, size: int) -> list[list[int]]:
    """Return the pixel indices of the crops along one axis.

    The i-th crop starts at i (length - size) / (per_axis - 1), rounded half up. A single crop is centered. An axis
    shorter than `size` is first extended at its end by reflection, without repeating the border.

    Args:
        length: length of the axis in pixels.
        per_axis: number of crops along the axis.
        size: side of a crop in pixels.

    Returns:
        `per_axis` lists of `size` indices in 0 to length - 1.

    Example:
        >>> crop_indices(5, 2, 3)
        [[0, 1, 2], [2, 3, 4]]
        >>> crop_indices(2, 1, 3)
        [[0, 1, 0]]
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
    """Return K crops at native resolution and fixed positions, row by row.

    The image is not resized, because that would destroy the noise and blur that c must distinguish.

    Args:
        image: images, [B, 3, H, W].
        count: K, a square number.
        size: side R of a crop in pixels.

    Returns:
        The crops, [B, K, 3, R, R].
    """
    per_axis = math.isqrt(count)
    rows = crop_indices(image.shape[-2], per_axis, size)
    columns = crop_indices(image.shape[-1], per_axis, size)
    return torch.stack([image[..., row, :][..., column] for row in rows for column in columns], dim=1)


class DiffusersHSpace(nn.Module):
    """Encoder and middle block of a diffusers `UNet2DModel` at t = 0, without its decoder.

    Args:
        unet: DDPM with the structure of the published ones.

    Attributes:
        channels: number C of output channels.

    Raises:
        CheckpointError: the UNet has parts that the published DDPMs do not have.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        refused = {
            "skip-convolution blocks": any(hasattr(block, "skip_conv") for block in unet.down_blocks),
            "no middle block": unet.mid_block is None,
            "class labels": unet.class_embedding is not None,
            "a time embedding that is not positional": unet.config["time_embedding_type"] != "positional",
            "a centered input": unet.config["center_input_sample"],
        }
        if found := [what for what, present in refused.items() if present]:
            raise CheckpointError(f"a DDPM with {', '.join(found)} is not supported: use Down/AttnDown blocks alone")
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.down_blocks = unet.conv_in, unet.down_blocks
        self.mid_block = cast(nn.Module, unet.mid_block)
        self.channels: int = unet.config["block_out_channels"][-1]

    def embedding(self, x: Tensor) -> Tensor:
        """Return the embedding of the timestep t = 0, [B, E].

        Args:
            x: batch whose size, dtype and device it gets.
        """
        timestep = torch.zeros(1, dtype=torch.long, device=x.device)
        return self.time_embedding(self.time_proj(timestep).to(x.dtype)).expand(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the h-space of images: the output of the middle block at t = 0.

        Args:
            x: [B, 3, R, R] in [-1, 1].

        Returns:
            [B, C, R/2^k, R/2^k] for k + 1 levels.
        """
        embedding = self.embedding(x)
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(hidden_states=x, temb=embedding)
        return self.mid_block(x, embedding)


class ModulationNetwork(nn.Module):
    """M of equation (5): gamma_i, beta_i = M([c, p_i]) for all N conditional layers at once.

    c and the learnable prompts p_i each pass a Linear, LayerNorm and ReLU, and are concatenated. A last Linear predicts
    (gamma - 1, beta). It is zero-initialized, so the untrained network returns gamma = 1 and beta = 0: plain LoRA.

    Args:
        channels: C.
        layers: N.
        rank: r.
        condition_width: hidden width for c.
        prompt_width: width of the prompts, and hidden width for them.
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
        """Eq. (5).

        Args:
            condition: c, [B, C] float32.

        Returns:
            The modulation, [B, N, 2, r] float32, with gamma_i at [:, i, 0] and beta_i at [:, i, 1].
        """
        batch, layers = condition.shape[0], self.prompts.shape[0]
        hidden = self.condition_in(condition)[:, None, :].expand(batch, layers, -1)
        prompts = self.prompt_in(self.prompts)[None].expand(batch, layers, -1)
        out = self.out(torch.cat([hidden, prompts], dim=-1)).reshape(batch, layers, 2, self.rank)
        return out + out.new_tensor([1.0, 0.0])[:, None]


def _hidden(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU())


class MFM(nn.Module):
    """Multi-degradation feature modulation: image crops -> condition c and modulation.

    c is the h-space of a frozen DDPM at t = 0, averaged over positions and over the K crops.

    Args:
        h_space: encoder of the DDPM, [B, 3, R, R] -> [B, C, h, w].
        network: M of equation (5).
    """

    def __init__(self, h_space: nn.Module, network: ModulationNetwork) -> None:
        super().__init__()
        self.h_space, self.network = h_space, network

    def condition(self, crops: Tensor) -> Tensor:
        """Return the condition c, [B, C] float32. The DDPM encoder that computes it is frozen.

        Args:
            crops: crops of the native images, [B, K, 3, R, R] in [-1, 1].
        """
        batch, count = crops.shape[:2]
        dtype = next(self.h_space.parameters()).dtype
        features = self.h_space(crops.flatten(0, 1).to(dtype))
        return features.float().mean(dim=(2, 3)).reshape(batch, count, -1).mean(dim=1)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return the condition and the modulation.

        Args:
            crops: crops of the native images, [B, K, 3, R, R] in [-1, 1].

        Returns:
            c, [B, C], and the modulation, [B, N, 2, r]. Both are float32.
        """
        condition = self.condition(crops)
        return condition, self.network(condition)
