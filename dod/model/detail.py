"""High-fidelity detail enhancement: equation (6), and the VAE decoder with a detail module before each up block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..config import DetailConfig

__all__ = ["RRDB", "SCALE", "Decoder", "DenseBlock", "DetailEnhancement"]

SCALE = 0.2
"""Scale of the residuals of dense blocks and RRDBs."""


class DenseBlock(nn.Module):
    """Five densely connected 3 x 3 convolutions and a scaled residual (Wang et al. 2018, ESRGAN).

    Args:
        channels: number C of input and output channels.
        growth: number of channels that each of the first four convolutions adds.
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        widths = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + i * growth, width, 3, padding=1) for i, width in enumerate(widths)
        )

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the last convolution, [B, C + 4 growth, H, W].

        Args:
            x: input of the block, [B, C, H, W].
        """
        features = x
        for conv in self.convs[:-1]:
            features = torch.cat([features, F.leaky_relu(conv(features), 0.2)], dim=1)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return x + 0.2 convs(x).

        Args:
            x: [B, C, H, W].
        """
        return x + SCALE * self.convs[-1](self.features(x))


class RRDB(nn.Module):
    """Residual-in-residual dense block (Wang et al. 2018, ESRGAN).

    Args:
        channels: number C of input and output channels.
        growth: growth of the dense blocks in channels.
        dense: number of dense blocks, 3 in ESRGAN.
    """

    def __init__(self, channels: int, growth: int, dense: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(dense)))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + 0.2 blocks(x).

        Args:
            x: [B, C, H, W].
        """
        return x + SCALE * self.blocks(x)


class DetailEnhancement(nn.Module):
    """Detail enhancement module (DEM), equation (6): F_m = F_d + w RRDB([Conv(F_e), F_d]).

    Conv is a zero-initialized 1 x 1 convolution (`align`), and w a learnable scalar that starts at 0, so the untrained
    module is the identity. The RRDBs do not start at zero, so that the gradient reaches w. A 1 x 1 convolution (`fuse`)
    reduces the 2 C concatenated channels to the C / `config.narrow` channels of the RRDBs; if those are fewer than C,
    another one restores C channels after them.

    Args:
        encoder_channels: C_e.
        channels: C.
        config: number and widths of the RRDBs.
    """

    def __init__(self, encoder_channels: int, channels: int, config: DetailConfig) -> None:
        super().__init__()
        width = channels // config.narrow
        self.align = nn.Conv2d(encoder_channels, channels, 1)
        self.fuse = nn.Conv2d(2 * channels, width, 1)
        self.body = nn.Sequential(*(RRDB(width, config.growth, config.dense) for _ in range(config.blocks)))
        if width != channels:
            self.body.append(nn.Conv2d(width, channels, 1))
        self.weight = nn.Parameter(torch.zeros(()))
        for parameter in self.align.parameters():
            nn.init.zeros_(parameter)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Eq. (6).

        Args:
            encoded: features F_e of the encoder, [B, C_e, H, W].
            decoded: features F_d of the decoder, [B, C, H, W].

        Returns:
            F_m, [B, C, H, W].
        """
        fused = self.fuse(torch.cat([self.align(encoded), decoded], dim=1))
        return decoded + self.weight * self.body(fused)


class Decoder(nn.Module):
    """VAE decoder with a detail module before each up block.

    Args:
        vae: autoencoder whose decoder and `post_quant_conv` it uses.
        config: detail modules; with `enabled` off there are none (Table 4).
    """

    def __init__(self, vae: AutoencoderKL, config: DetailConfig) -> None:
        super().__init__()
        self.scaling_factor: float = vae.config["scaling_factor"]
        self.post_quant_conv, self.decoder = cast(nn.Conv2d, vae.post_quant_conv), vae.decoder
        widths = vae.config["block_out_channels"]
        encoder_widths = [widths[0], *widths[:-1]]
        decoder_widths = [widths[-1], *reversed(widths[1:])]
        self.detail = nn.ModuleList(
            DetailEnhancement(e, d, config)
            for e, d in zip(reversed(encoder_widths), decoder_widths, strict=True)
            if config.enabled
        )

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the VAE's decoder and `post_quant_conv` by their names in the VAE."""
        return {name: p for name, p in self.named_parameters() if name.partition(".")[0] != "detail"}

    def forward(self, latent_restored: Tensor, skips: Sequence[Tensor] | None = None) -> Tensor:
        """Decode a latent.

        Args:
            latent_restored: [B, 4, H/8, W/8] float32.
            skips: inputs of the encoder's down blocks, skip_0 at H x W to skip_3 at H/8 x W/8; the detail modules take
                them in reverse order. Without skips no detail module runs, as in stage 1 of the training.

        Returns:
            The image, [B, 3, H, W] float32, in about [-1, 1], not clipped.
        """
        decoder = self.decoder
        dtype = self.post_quant_conv.weight.dtype
        x = decoder.conv_in(self.post_quant_conv((latent_restored / self.scaling_factor).to(dtype)))
        x = decoder.mid_block(x)
        for i, block in enumerate(decoder.up_blocks):
            if len(self.detail) and skips is not None:
                x = self.detail[i](skips[-1 - i], x)
            x = block(x)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x))).float()
