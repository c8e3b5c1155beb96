"""Initial weights of new networks: the linear maps nearest to their task, so that short training learns the rest.

Networks with random weights need long training before they preserve an image's brightness, whose errors are the most
visible. Here, pairs of channels (+x, -x) carry colors or a latent from the first convolution to the last along the
residual stream, and every residual branch starts at zero. All other channels of the stream are such pairs too, so that
normalization finds no mean to remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from ..config import Preset, VAEConfig
from ..model.base import new_unet, new_vae
from ..model.dod import alpha_bar

__all__ = ["let_tone_through", "new_autoencoder", "new_latent_unet"]

TONE = 8.0
"""Deviation of the features before the last normalization, which divides by it; see `let_tone_through`."""
COLOURS = 3
"""Number of color channels."""
QUIET = 0.1
"""Factor of a last convolution's random weights for output channels that start as a copy of their input."""
LOG_VARIANCE = -8.0
"""Log variance of a new autoencoder's latents: a deviation of 1 % of the range of colors."""


@torch.no_grad()
def new_autoencoder(config: VAEConfig) -> AutoencoderKL:
    """Return a new autoencoder that starts as averaging: the first three latents are the mean colors of their blocks.

    Args:
        config: structure of the autoencoder.

    Returns:
        The autoencoder.
    """
    vae = new_vae(config)
    encoder, decoder = cast(Any, vae.encoder), cast(Any, vae.decoder)
    count = _fitting(COLOURS, config.block_out_channels)
    pairs, keep = _pairs(count), torch.eye(2 * count)
    mean = torch.zeros(3, 3)
    mean[:2, :2] = 1 / 4  # of the stride's square: diffusers pads on the right and below
    _carry(encoder.conv_in, pairs)
    _carry(decoder.conv_in, pairs)
    down = [sampler.conv for block in encoder.down_blocks for sampler in block.downsamplers or ()]
    up = [sampler.conv for block in decoder.up_blocks for sampler in block.upsamplers or ()]
    blocks = (*encoder.down_blocks, *decoder.up_blocks)
    shortcuts = [each.conv_shortcut for block in blocks for each in block.resnets if each.conv_shortcut is not None]
    for conv in down:
        _carry(conv, keep, mean)
    for conv in (*up, *shortcuts):
        _carry(conv, keep)
    for conv in (encoder.conv_in, decoder.conv_in, *down, *up, *shortcuts):
        _pair_up(conv)
    _silence(vae)
    let_tone_through(encoder.conv_norm_out, encoder.mid_block)
    let_tone_through(decoder.conv_norm_out, decoder.up_blocks[-1])
    moments, latents = encoder.conv_out, config.latent_channels
    _carry(moments, pairs.T, quiet=QUIET)
    moments.weight[latents:], moments.bias[latents:] = 0, LOG_VARIANCE
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _carry(cast(nn.Conv2d, conv), torch.eye(cast(nn.Conv2d, conv).out_channels))
    _carry(decoder.conv_out, pairs.T, quiet=QUIET)
    return vae


@torch.no_grad()
def new_latent_unet(preset: Preset) -> UNet2DConditionModel:
    """Return a new UNet that starts as the best linear prediction of eps at the preset's timestep.

    For latents of deviation 1 that is eps = sqrt(1 - alpha_bar) z, carried along the outermost skip connection.

    Args:
        preset: preset whose UNet is made.

    Returns:
        The UNet.
    """
    latents = preset.base.vae.latent_channels
    unet = new_unet(preset.base.unet, latents)
    count = _fitting(latents, preset.base.unet.block_out_channels[:1])
    last = cast(Any, unet.up_blocks[-1])
    _silence(unet)
    _carry(unet.conv_in, _pairs(count))
    shortcut = last.resnets[-1].conv_shortcut
    _carry(shortcut, torch.eye(2 * count), first=shortcut.in_channels - unet.conv_in.out_channels)
    _pair_up(unet.conv_in)
    _pair_up(shortcut)
    let_tone_through(unet.conv_norm_out, last)
    gain = (1 - alpha_bar(preset.step)) ** 0.5
    _carry(unet.conv_out, gain * _pairs(count).T, quiet=QUIET)
    return unet


@torch.no_grad()
def let_tone_through(norm: Any, block: Any) -> None:
    """Initialize the last normalization of a network as nearly the identity, in place.

    The normalization removes mean and deviation of each group of channels over the whole image. At the end of the
    residual stream these are the image's brightness, cast and contrast. Two channels of each group get opposite
    constants that outweigh the differences between images, so that the divisor is about `TONE` for all images. A group
    of two channels has no others left: `norm_num_groups` must be small.

    Args:
        norm: the GroupNorm.
        block: the block before it.
    """
    room = norm.num_channels // norm.num_groups
    constant = TONE * (room / 2) ** 0.5
    constants = torch.tensor([0.0] * (room - 2) + [constant, -constant]).repeat(norm.num_groups)
    block.resnets[-1].conv2.bias += constants
    norm.weight.fill_(TONE)
    norm.bias.copy_(-constants)


def _pairs(count: int) -> Tensor:
    """Return the matrix [2 count, count] of x -> (+x, -x). Its transpose inverts SiLU of it: SiLU(x) - SiLU(-x) = x."""
    return torch.eye(count).repeat_interleave(2, dim=0) * torch.tensor([1.0, -1.0]).repeat(count)[:, None]


def _carry(conv: Any, matrix: Tensor, kernel: Tensor | None = None, first: int = 0, quiet: float = 0.0) -> None:
    """Set the first rows of a convolution to `matrix` on the input channels from `first`.

    Weights of those rows for other channels are multiplied by `quiet`. kernel: spatial weights [kh, kw], by default the
    center tap.
    """
    rows, columns = matrix.shape
    if kernel is None:
        kernel = torch.zeros(conv.weight.shape[2:])
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
    conv.weight[:rows] *= quiet
    conv.weight[:rows, first : first + columns] = matrix[:, :, None, None] * kernel
    conv.bias[:rows] = 0


def _pair_up(conv: Any) -> None:
    """Turn the output channels of a convolution into pairs (+x, -x)."""
    conv.weight[1::2], conv.bias[1::2] = -conv.weight[::2], -conv.bias[::2]


def _silence(model: nn.Module) -> None:
    """Initialize every residual branch as zero: residual blocks, attention and transformers."""
    for name, module in model.named_modules():
        if name.endswith(("conv2", "proj_out")) or (name.endswith("to_out.0") and ".transformer_blocks." not in name):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def _fitting(wanted: int, widths: Sequence[int]) -> int:
    """Return the number of values that fit in the stream: two channels each, next to the two of `let_tone_through`."""
    return min(wanted, (min(widths) - 2) // 2)
