"""High-fidelity detail enhancement: equation (6), and the VAE decoder that carries one module before each up block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..config import DetailConfig

SCALE = 0.2
"""What the residuals of a dense block and of an RRDB are scaled by."""


class DenseBlock(nn.Module):
    """Five densely connected 3 x 3 convolutions (Wang et al. 2018, ESRGAN). x: [B, C, H, W]; the same out."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        widths = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + i * growth, width, 3, padding=1) for i, width in enumerate(widths)
        )

    def features(self, x: Tensor) -> Tensor:
        """What the last convolution takes, [B, C + 4 growth, H, W]."""
        features = x
        for conv in self.convs[:-1]:
            features = torch.cat([features, F.leaky_relu(conv(features), 0.2)], dim=1)
        return features

    def forward(self, x: Tensor) -> Tensor:
        return x + SCALE * self.convs[-1](self.features(x))


class RRDB(nn.Module):
    """Residual-in-residual dense block: dense blocks, three in ESRGAN, and a scaled residual."""

    def __init__(self, channels: int, growth: int, dense: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(dense)))

    def forward(self, x: Tensor) -> Tensor:
        return x + SCALE * self.blocks(x)


class DetailEnhancement(nn.Module):
    """Equation (6): F_m = F_d + w RRDB(fuse([Conv(F_e), F_d])).

    F_e: [B, C_e, H, W]; F_d, F_m: [B, C, H, W]. Conv is 1 x 1 and zero-initialised, w a learnable number that starts
    at 0, so the module starts as the identity; the RRDBs do not start at zero, so gradient reaches w. narrow: the
    RRDBs work on C / narrow channels; where that is fewer than C, a 1 x 1 convolution follows them.
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
        fused = self.fuse(torch.cat([self.align(encoded), decoded], dim=1))
        return decoded + self.weight * self.body(fused)


class Decoder(nn.Module):
    """The VAE decoder with detail enhancement. latent_restored [B, 4, H/8, W/8], skip_0..skip_3 -> image [B, 3, H, W].

    skip_i is the input of the encoder's i-th down block (skip_0 at H, skip_3 at H/8); the modules take them reversed.
    The image is float32, in about [-1, 1], not clipped. `detail` is empty where the ablation leaves it out; without
    skips it is left out (stage 1 trains without it).
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
        """The VAE's own parameters by their names in the VAE: those of the decoder and of the layer before it."""
        return {name: p for name, p in self.named_parameters() if name.partition(".")[0] != "detail"}

    def forward(self, latent_restored: Tensor, skips: Sequence[Tensor] | None = None) -> Tensor:
        decoder = self.decoder
        dtype = self.post_quant_conv.weight.dtype
        x = decoder.conv_in(self.post_quant_conv((latent_restored / self.scaling_factor).to(dtype)))
        x = decoder.mid_block(x)
        for i, block in enumerate(decoder.up_blocks):
            if len(self.detail) and skips is not None:
                x = self.detail[i](skips[-1 - i], x)
            x = block(x)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x))).float()
