"""The frozen weights under a DOD model: Stable Diffusion's VAE and UNet, the prompt embedding, and the DDPM's encoder.

Read from a diffusers folder or hub id, from an ADM state dict, or made at random; never from a pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .adm import ADMEncoder
from .config import BaseConfig, DDPMConfig, Preset, UNetConfig, VAEConfig
from .errors import CheckpointError
from .modulation import DiffusersHSpace

PROMPT_FILE = "prompt.safetensors"


@dataclass
class BaseParts:
    """vae, unet: diffusers models; h_space: [B, 3, R, R] -> [B, C, ., .] with `channels`; prompt: [1, T, D] float32."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    prompt: Tensor
    h_space: nn.Module
    sha256: str


def load_base(preset: Preset) -> BaseParts:
    """The frozen parts a preset names, in float32, with their identity. CheckpointError says which part is missing."""
    vae, unet, prompt = _load_stable_diffusion(preset)
    h_space = _load_h_space(preset)
    digest = identity({"vae": vae, "unet": unet, "ddpm": h_space}, prompt)
    return BaseParts(vae, unet, prompt, h_space, digest)


def identity(models: dict[str, nn.Module], prompt: Tensor) -> str:
    """SHA-256 over names and float32 values, so that storage in half or single, sharded or not, is the same base.

    On the meta device there are no values: names and shapes stand in for them.
    """
    digest = hashlib.sha256()
    tensors = {f"{part}.{name}": t for part, model in models.items() for name, t in model.state_dict().items()}
    for name, tensor in sorted({**tensors, "prompt": prompt}.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.device.type != "meta":
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def new_vae(config: VAEConfig) -> AutoencoderKL:
    """A randomly initialised `AutoencoderKL` of SD's structure."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=config.scaling_factor,
    )


def new_unet(config: UNetConfig, latent_channels: int = 4) -> UNet2DConditionModel:
    """A randomly initialised `UNet2DConditionModel` of SD 2.1's structure. (diffusers calls the heads attention_head_dim.)"""
    levels = len(config.block_out_channels)
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        use_linear_projection=True,
    )


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
    source = preset.locate(config.source)
    vae = _pretrained(AutoencoderKL, source, "vae", config.revision)
    unet = _pretrained(UNet2DConditionModel, source, "unet", config.revision)
    prediction = _prediction_type(Path(source))
    if prediction not in (None, "epsilon"):
        raise CheckpointError(
            f"{source}: a base with {prediction} is not supported; DOD's closed form needs epsilon prediction (SD 2.1-base)"
        )
    return vae, unet, load_prompt(source, config, unet.config.cross_attention_dim)


def load_prompt(source: str, config: BaseConfig, width: int) -> Tensor:
    """The fixed prompt's embedding [1, T, D]: the base's prompt.safetensors, or its own text encoder run once."""
    file = Path(source) / PROMPT_FILE
    if file.is_file():
        return read_safetensors(file)["prompt"].float()
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError:
        raise CheckpointError(
            f"{source} has no {PROMPT_FILE}, and encoding the prompt needs transformers: pip install 'dod-toolkit[train]'"
        ) from None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", revision=config.revision)
        encoder = CLIPTextModel.from_pretrained(
            source, subfolder="text_encoder", revision=config.revision, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: neither {PROMPT_FILE} nor a text encoder was found: {_first_line(error)}") from None
    tokens = tokenizer(
        config.prompt, padding="max_length", max_length=config.prompt_tokens, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        embedding = encoder(tokens.input_ids)[0]
    if embedding.shape[-1] != width:
        raise CheckpointError(f"{source}: text encoder gives {embedding.shape[-1]} numbers, the UNet expects {width}")
    return embedding.float()


def _load_h_space(preset: Preset) -> nn.Module:
    config = preset.ddpm
    if config.source == "random":
        with _seeded(config.seed):
            return ADMEncoder() if config.layout == "adm" else DiffusersHSpace(new_ddpm(config))
    source = preset.locate(config.source)
    if config.layout == "adm":
        return load_adm(Path(source))
    return DiffusersHSpace(_pretrained(UNet2DModel, source, None, None))


def load_adm(path: Path) -> ADMEncoder:
    """The encoder half of an ADM state dict under OpenAI's key names (.safetensors, or .pt read with weights_only)."""
    if not path.is_file():
        raise CheckpointError(f"no ADM checkpoint at {path}")
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise CheckpointError(f"{path}: not a plain state dict (nothing else is read): {_first_line(error)}") from None
    with torch.device("meta"):
        encoder = ADMEncoder()
    wanted = encoder.state_dict()
    missing = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
    if missing:
        raise CheckpointError(
            f"{path}: not the ADM-256 unconditional layout: {len(missing)} keys missing or of another shape, "
            f"first {', '.join(missing[:3])}"
        )
    encoder.load_state_dict({name: state[name].float() for name in wanted}, assign=True)
    return encoder


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. CheckpointError where it is missing or malformed."""
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors. CheckpointError where there is no room (safetensors does not raise an OSError)."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: could not be written: {error}") from None


def _pretrained(kind: type, source: str, subfolder: str | None, revision: str | None) -> nn.Module:
    try:
        model = kind.from_pretrained(
            source, subfolder=subfolder, revision=revision, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        part = f"{source}/{subfolder}" if subfolder else source
        raise CheckpointError(f"{part}: no {kind.__name__} in diffusers layout there: {_first_line(error)}") from None
    return model.eval()


def _prediction_type(source: Path) -> str | None:
    file = source / "scheduler" / "scheduler_config.json"
    return json.loads(file.read_text()).get("prediction_type", "epsilon") if file.is_file() else None


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
