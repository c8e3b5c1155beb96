"""Frozen base of a DOD model: Stable Diffusion's VAE and UNet, the prompt embedding, and the encoder of the DDPM.

Weights come from a diffusers folder or hub id, from an ADM state dict, or from a random generator, never from a pickle.
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

from ..config import BaseConfig, Preset
from ..errors import CheckpointError
from ..tensors import fingerprint, read_safetensors, read_state
from .adm import ADMEncoder
from .modulation import DiffusersHSpace
from .networks import new_ddpm, new_unet, new_vae, random_prompt

__all__ = [
    "PROMPT_FILE", "BaseParts", "HSpace", "identity", "load_adm", "load_base", "load_part", "load_prompt",
    "new_ddpm", "new_unet", "new_vae", "random_prompt",
]  # fmt: skip

PROMPT_FILE = "prompt.safetensors"
"""File in the folder of a base that holds its prompt embedding."""
NAMED = 3
"""Maximum number of missing weights that an error names."""

HSpace = ADMEncoder | DiffusersHSpace
Model = TypeVar("Model", bound=ModelMixin)


@dataclass
class BaseParts:
    """Frozen parts of a DOD model.

    Attributes:
        vae: autoencoder.
        unet: latent UNet, which predicts the noise.
        prompt: prompt embedding, [1, T, D] float32.
        h_space: encoder and middle block of the DDPM, [B, 3, R, R] -> [B, C, h, w].
        sha256: identity of all weights, see `identity`.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    prompt: Tensor
    h_space: HSpace
    sha256: str


def load_base(preset: Preset) -> BaseParts:
    """Load the frozen parts of a preset.

    Args:
        preset: preset that names the sources of the weights.

    Returns:
        The parts, in float32.

    Raises:
        CheckpointError: a part is missing, incomplete, or does not match the preset.
    """
    vae, unet, prompt = _load_stable_diffusion(preset)
    h_space = _load_h_space(preset)
    digest = identity({"vae": vae, "unet": unet, "ddpm": h_space}, prompt)
    return BaseParts(vae, unet, prompt, h_space, digest)


def identity(models: Mapping[str, nn.Module], prompt: Tensor) -> str:
    """Return the SHA-256 of the names, shapes and float32 values of models and prompt.

    It does not depend on how the weights are stored: fp16 or fp32, sharded or not. On the meta device it covers names
    and shapes, because there are no values.

    Args:
        models: models by name, which prefixes the names of their tensors.
        prompt: prompt embedding, [1, T, D].
    """
    tensors = {f"{part}.{name}": t for part, model in models.items() for name, t in model.state_dict().items()}
    return fingerprint({**tensors, "prompt": prompt})


def _load_stable_diffusion(preset: Preset) -> tuple[AutoencoderKL, UNet2DConditionModel, Tensor]:
    config = preset.base
    if config.source == "random":
        with _seeded(config.seed):
            return new_vae(config.vae), new_unet(config.unet, config.vae.latent_channels), random_prompt(config)
    source = _located(preset, config.source)
    if Path(source).is_file():
        raise CheckpointError(f"{source} is a single file: give a folder in diffusers' layout, with vae/ and unet/")
    prediction = _prediction_type(source, config.revision)
    if prediction != "epsilon":
        raise CheckpointError(
            f"{source}: a base with {prediction} is not supported: the closed form needs epsilon, such as SD 2.1-base"
        )
    vae = load_part(AutoencoderKL, source, "vae", config.revision)
    unet = load_part(UNet2DConditionModel, source, "unet", config.revision)
    for part, model, stated in (("vae", vae, config.vae), ("unet", unet, config.unet)):
        widths = tuple(model.config["block_out_channels"])
        if widths != stated.block_out_channels:
            raise CheckpointError(
                f"{source}/{part}: block_out_channels are {widths}, preset {preset.name} states "
                f"{stated.block_out_channels}: give a base and a preset that match"
            )
    prompt = load_prompt(source, config)
    if prompt.ndim != 3 or prompt.shape[2] != unet.config["cross_attention_dim"]:
        raise CheckpointError(
            f"{source}: its prompt embedding is {list(prompt.shape)}, its UNet expects "
            f"[1, tokens, {unet.config['cross_attention_dim']}]"
        )
    return vae, unet, prompt


def load_prompt(source: str, config: BaseConfig) -> Tensor:
    """Return the embedding of the fixed prompt.

    Args:
        source: folder or hub id of a base. If it has no prompt.safetensors, its text encoder is run once.
        config: text and number of tokens of the prompt, and revision of the hub id.

    Returns:
        The embedding, [1, T, D] float32.

    Raises:
        CheckpointError: the base has neither, or transformers is not installed.
    """
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
        raise CheckpointError(f"{source}: has neither {PROMPT_FILE} nor a text encoder: {_first_line(error)}") from None
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
    """Load the encoder of an ADM.

    Args:
        path: state dict with OpenAI's key names: .safetensors, or .pt, which is read with weights_only.

    Returns:
        The encoder, in float32.

    Raises:
        CheckpointError: the file is missing, malformed, or has another structure.
    """
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
            f"no weights at {located}: not in the folder of preset {preset.name} ({preset.folder}), not a hub id"
        )
    return located


def load_part(kind: type[Model], source: str, subfolder: str | None = None, revision: str | None = None) -> Model:
    """Load a diffusers model from safetensors.

    Args:
        kind: class of the model.
        source: folder or hub id.
        subfolder: folder of the model in the source.
        revision: revision of the hub id.

    Returns:
        The model, in float32 and evaluation mode.

    Raises:
        CheckpointError: the model is missing or incomplete.
    """
    part = f"{source}/{subfolder}" if subfolder else source
    options = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
    try:
        loaded = kind.from_pretrained(source, subfolder=subfolder, revision=revision, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{part}: no {kind.__name__} in diffusers' layout: {_first_line(error)}") from None
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
    """Return the prediction type that a base's scheduler states, "epsilon" for a local folder without scheduler."""
    if Path(source).is_dir() and not (Path(source) / "scheduler").is_dir():
        warnings.warn(f"{source} has no scheduler folder: its UNet is assumed to predict epsilon", stacklevel=2)
        return "epsilon"
    try:
        config = cast(dict[str, Any], DDIMScheduler.load_config(source, subfolder="scheduler", revision=revision))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}/scheduler: no scheduler configuration: {_first_line(error)}") from None
    return config.get("prediction_type", "epsilon")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


class _seeded:
    """Context that seeds the global generator, and restores its state at the end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
