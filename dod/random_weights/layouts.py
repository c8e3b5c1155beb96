"""The published layouts: the configuration files and key names of SD 2.1-base, the 256 px DDPMs and OpenAI's ADM.

`published/` holds the configuration values as those repositories state them (facts, not weights). The published VAE and
DDPM were stored before diffusers renamed the layers of their attention, so their files hold the old names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

PUBLISHED = Path(__file__).parent / "published"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ADM_FILE = "256x256_diffusion_uncond.pt"

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""diffusers' names of an attention block's layers, and those of before its version 0.17."""

STRUCTURE = (
    "block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups",
    "attention_head_dim", "cross_attention_dim",
)  # fmt: skip
"""The keys of a configuration that a preset decides; all others are as published."""

_ATTENTION = re.compile(r"(attentions\.\d+)\.(to_q|to_k|to_v|to_out\.0)\.(weight|bias)$")

Shape = tuple[int, ...]


def configuration(part: str, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """The published configuration of "unet", "vae" or "ddpm", with the structure of a model of another size."""
    published = json.loads((PUBLISHED / f"{part}.json").read_text())
    return {key: model_config[key] if key in STRUCTURE else value for key, value in published.items()}


def old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's or pixel DDPM's tensors under the published names. A latent UNet's have no old ones and stay."""
    return {_ATTENTION.sub(_old_name, name): tensor for name, tensor in state.items()}


def adm_decoder(
    model_channels: int = 256,
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
    res_blocks: int = 2,
    attention_factors: tuple[int, ...] = (8, 16, 32),
    head_channels: int = 64,
) -> dict[str, Shape]:
    """Key -> shape of `output_blocks` and `out`, the half of an ADM that `ADMEncoder` leaves out.

    Each block takes what the block before gives and one skip of the encoder; the last of a level doubles the size.
    The six channels given are the noise and its learned variance. head_channels changes no shape.
    """
    widths = [multiplier * model_channels for multiplier in multipliers]
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * (res_blocks + (level < len(widths) - 1))
    shapes: dict[str, Shape] = {}
    channels, index = widths[-1], 0
    for level in reversed(range(len(widths))):
        for i in range(res_blocks + 1):
            block = f"output_blocks.{index}"
            shapes |= _residual(f"{block}.0", channels + skips.pop(), widths[level], 4 * model_channels)
            channels, index, layer = widths[level], index + 1, 1
            if 2**level in attention_factors:
                shapes |= _attention(f"{block}.{layer}", channels)
                layer += 1
            if level and i == res_blocks:
                shapes |= _residual(f"{block}.{layer}", channels, channels, 4 * model_channels)
    return shapes | dict([*_layer("out.0", channels), *_layer("out.2", 6, channels, 3, 3)])


def _old_name(match: re.Match[str]) -> str:
    return f"{match[1]}.{OLD_ATTENTION[match[2]]}.{match[3]}"


def _layer(name: str, outputs: int, *inputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, *inputs)
    yield f"{name}.bias", (outputs,)


def _residual(name: str, inputs: int, outputs: int, embedding: int) -> dict[str, Shape]:
    found = [
        *_layer(f"{name}.in_layers.0", inputs),
        *_layer(f"{name}.in_layers.2", outputs, inputs, 3, 3),
        *_layer(f"{name}.emb_layers.1", 2 * outputs, embedding),
        *_layer(f"{name}.out_layers.0", outputs),
        *_layer(f"{name}.out_layers.3", outputs, outputs, 3, 3),
    ]
    if inputs != outputs:
        found += _layer(f"{name}.skip_connection", outputs, inputs, 1, 1)
    return dict(found)


def _attention(name: str, channels: int) -> dict[str, Shape]:
    found = [*_layer(f"{name}.norm", channels), *_layer(f"{name}.qkv", 3 * channels, channels, 1)]
    return dict([*found, *_layer(f"{name}.proj_out", channels, channels, 1)])
