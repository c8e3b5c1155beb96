"""The frozen weights under a DOD model: Stable Diffusion's VAE and UNet, the prompt embedding, and the DDPM's encoder.

Read from a diffusers folder or hub id, from an ADM state dict, or made at random; never from a pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from ..config import BaseConfig, DDPMConfig, Preset, UNetConfig, VAEConfig
from ..errors import CheckpointError
from ..tensors import fingerprint, read_safetensors, read_state
from .adm import ADMEncoder
from .modulation import DiffusersHSpace

PROMPT_FILE = "prompt.safetensors"
NAMED = 3  # so many missing weights stand in an error

HSpace = ADMEncoder | DiffusersHSpace
Model = TypeVar("Model", bound=ModelMixin)


@dataclass
class BaseParts:
    """vae, unet: diffusers models; h_space: [B, 3, R, R] -> [B, C, ., .] with `channels`; prompt: [1, T, D] float32."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    prompt: Tensor
    h_space: HSpace
    sha256: str


def load_base(preset: Preset) -> BaseParts:
    """The frozen parts a preset names, in float32, with their identity. CheckpointError says which part is missing."""
    vae, unet, prompt = _load_stable_diffusion(preset)
    h_space = _load_h_space(preset)
    digest = identity({"vae": vae, "unet": unet, "ddpm": h_space}, prompt)
    return BaseParts(vae, unet, prompt, h_space, digest)


def identity(models: Mapping[str, nn.Module], prompt: Tensor) -> str:
    """SHA-256 over names and float32 values, so that storage in half or single, sharded or not, is the same base.

    On the meta device there are no values: names and shapes stand in for them.
    """
    tensors = {f"{part}.{name}": t for part, model in models.items() for name, t in model.state_dict().items()}
    return fingerprint({**tensors, "prompt": prompt})


def new_vae(config: VAEConfig) -> AutoencoderKL:
    """A randomly initialised `AutoencoderKL` of SD's structure."""
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
    """A randomly initialised `UNet2DConditionModel` of SD 2.1's structure."""
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
    """A randomly initialised `UNet2DModel` of the published 256 px DDPMs' structure."""
    levels = len(config.block_out_channels)
    down = tuple("AttnDownBlock2D" if i in config.attention_levels else "DownBlock2D" for i in range(levels))
    up = tuple(kind.replace("Down", "Up") for kind in reversed(down))
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
    """A fixed standard-normal prompt embedding [1, T, D], for bases that were never trained with a text encoder."""
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randn(1, config.prompt_tokens, config.unet.cross_attention_dim, generator=generator)


def _load_stable_diffusion(preset: Preset) -> tuple[AutoencoderKL, UNet2DConditionModel, Tensor]:
    config = preset.base
    if config.source == "random":
        with _seeded(config.seed):
            return new_vae(config.vae), new_unet(config.unet, config.vae.latent_channels), random_prompt(config)
    source = _located(preset, config.source)
    if Path(source).is_file():
        raise CheckpointError(
            f"{source} is a single file: the base is expected in diffusers' layout, a folder with vae/ and unet/"
        )
    prediction = _prediction_type(source, config.revision)
    if prediction != "epsilon":
        raise CheckpointError(
            f"{source}: a base with {prediction} is not supported: DOD's closed form needs epsilon, as SD 2.1-base has"
        )
    vae = load_part(AutoencoderKL, source, "vae", config.revision)
    unet = load_part(UNet2DConditionModel, source, "unet", config.revision)
    for part, model, stated in (("vae", vae, config.vae), ("unet", unet, config.unet)):
        widths = tuple(model.config["block_out_channels"])
        if widths != stated.block_out_channels:
            raise CheckpointError(
                f"{source}/{part}: block_out_channels are {widths}, preset {preset.name} states "
                f"{stated.block_out_channels}: give the base or preset that belongs to it"
            )
    prompt = load_prompt(source, config)
    if prompt.ndim != 3 or prompt.shape[2] != unet.config["cross_attention_dim"]:
        raise CheckpointError(
            f"{source}: its prompt embedding is {list(prompt.shape)}, its UNet expects "
            f"[1, tokens, {unet.config['cross_attention_dim']}]"
        )
    return vae, unet, prompt


def load_prompt(source: str, config: BaseConfig) -> Tensor:
    """The fixed prompt's embedding [1, T, D]: the base's prompt.safetensors, or its own text encoder run once."""
    file = Path(source) / PROMPT_FILE
    if file.is_file():
        tensors = read_safetensors(file)
        if "prompt" not in tensors:
            raise CheckpointError(f"{file}: has no tensor named prompt")
        return tensors["prompt"].float()
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise CheckpointError(
            f"{source} has no {PROMPT_FILE}, and encoding the prompt needs transformers: "
            "pip install 'dod-toolkit[train]'"
        ) from None
    try:
        revision = config.revision or "main"
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", revision=revision)
        encoder = CLIPTextModel.from_pretrained(
            source, subfolder="text_encoder", revision=revision, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: neither {PROMPT_FILE} nor a text encoder was found: {_first_line(error)}"
        ) from None
    tokens = tokenizer(
        config.prompt, padding="max_length", max_length=config.prompt_tokens, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return encoder(tokens.input_ids)[0].float()


def _load_h_space(preset: Preset) -> HSpace:
    config = preset.ddpm
    if config.source == "random":
        with _seeded(config.seed):
            return ADMEncoder() if config.layout == "adm" else DiffusersHSpace(new_ddpm(config))
    source = _located(preset, config.source)
    if config.layout == "adm" or Path(source).is_file():
        return load_adm(Path(source))
    return DiffusersHSpace(load_part(UNet2DModel, source))


def load_adm(path: Path) -> ADMEncoder:
    """The encoder half of an ADM state dict under OpenAI's key names (.safetensors, or .pt read with weights_only)."""
    if not path.is_file():
        raise CheckpointError(f"no ADM checkpoint at {path}")
    state = read_state(path)
    with torch.device("meta"):
        encoder = ADMEncoder()
    wanted = encoder.state_dict()
    missing = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
    if missing:
        raise CheckpointError(
            f"{path}: not the ADM-256 unconditional layout: {len(missing)} keys missing or of another shape, "
            f"first {', '.join(missing[:NAMED])}"
        )
    encoder.load_state_dict({name: state[name].float() for name in wanted}, assign=True)
    return encoder


def _located(preset: Preset, source: str) -> str:
    located = preset.locate(source)
    hub_id = located.count("/") == 1 and not located.startswith((".", "/"))
    if not (hub_id or Path(located).exists()):
        raise CheckpointError(
            f"no weights at {located}: not beside preset {preset.name} ({preset.folder}), not a hub id"
        )
    return located


def load_part(kind: type[Model], source: str, subfolder: str | None = None, revision: str | None = None) -> Model:
    """A diffusers model in float32, from safetensors alone. CheckpointError where it is missing or incomplete."""
    part = f"{source}/{subfolder}" if subfolder else source
    options = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
    try:
        loaded = kind.from_pretrained(source, subfolder=subfolder, revision=revision, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{part}: no {kind.__name__} in diffusers layout there: {_first_line(error)}") from None
    model, info = cast(tuple[Model, dict[str, list[str]]], loaded)
    if missing := sorted(info["missing_keys"]):
        others = sorted(info["unexpected_keys"])
        found = f"; it holds {', '.join(others[:NAMED])} instead" if others else ""
        raise CheckpointError(
            f"{part}: not diffusers' layout of {kind.__name__}: {len(missing)} weights are missing, "
            f"first {', '.join(missing[:NAMED])}{found}"
        )
    return model.eval()


def _prediction_type(source: str, revision: str | None) -> str:
    """What the base's UNet predicts: epsilon unless its scheduler says otherwise. (A local folder may have none.)"""
    if Path(source).is_dir() and not (Path(source) / "scheduler").is_dir():
        warnings.warn(f"{source} has no scheduler folder: its UNet is taken to predict epsilon", stacklevel=2)
        return "epsilon"
    try:
        config = cast(dict[str, Any], DDIMScheduler.load_config(source, subfolder="scheduler", revision=revision))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}/scheduler: no scheduler configuration there: {_first_line(error)}") from None
    return config.get("prediction_type", "epsilon")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


class _seeded:
    """Build random weights from a seed without touching the global generator's state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
