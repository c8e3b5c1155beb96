"""Published layouts: configuration files and key names of SD 2.1-base, the 256 px DDPMs and OpenAI's ADM.

`published/` has the configuration values of those repositories, not weights. The published VAE and DDPM were stored
before diffusers renamed the layers of their attention blocks, so their files have the old names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["ADM_FILE", "PUBLISHED", "WEIGHTS", "adm_decoder", "configuration", "old_names"]

PUBLISHED = Path(__file__).parent / "published"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ADM_FILE = "256x256_diffusion_uncond.pt"

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the layers of an attention block in diffusers, and their names before version 0.17."""

STRUCTURE = (
    "block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups",
    "attention_head_dim", "cross_attention_dim",
)  # fmt: skip
"""Keys of a configuration whose values come from the model; all others are published values."""

_ATTENTION = re.compile(r"(attentions\.\d+)\.(to_q|to_k|to_v|to_out\.0)\.(weight|bias)$")

Shape = tuple[int, ...]


def configuration(part: str, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published configuration of a part, with the structure of a model that may have another size.

    Args:
        part: "unet", "vae" or "ddpm".
        model_config: configuration of the model.
    """
    published = json.loads((PUBLISHED / f"{part}.json").read_text())
    return {key: model_config[key] if key in STRUCTURE else value for key, value in published.items()}


def old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a VAE or a pixel DDPM under the published names.

    Args:
        state: tensors by current name. Those of a latent UNet keep their names.
    """
    return {_ATTENTION.sub(_old_name, name): tensor for name, tensor in state.items()}


def adm_decoder(
    model_channels: int = 256,
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
    res_blocks: int = 2,
    attention_factors: tuple[int, ...] = (8, 16, 32),
    head_channels: int = 64,
) -> dict[str, Shape]:
    """Return the shapes of `output_blocks` and `out`, the part of an ADM that `ADMEncoder` does not have.

    The input of each block is the output of the block before it and one skip of the encoder. The last block of a level
    doubles the size. The six output channels are the noise and its learned variance.

    Args:
        model_channels: width of the first level in channels.
        multipliers: width of each level as a multiple of `model_channels`.
        res_blocks: number of residual blocks per level of the encoder; the decoder has one more.
        attention_factors: downsampling factors of the levels with attention.
        head_channels: channels per attention head, which do not affect shapes.

    Returns:
        Shapes by key.
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
