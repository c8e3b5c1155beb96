"""Presets: YAML files that are validated and converted to frozen dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from .errors import ConfigError
from .validation import convert, did_you_mean, override

__all__ = [
    "BaseConfig", "DDPMConfig", "DetailConfig", "LoRAConfig", "MFMConfig", "PostprocessConfig", "Preset", "StepConfig",
    "UNetConfig", "VAEConfig", "ENCODER_TARGETS", "PRESETS", "UNET_TARGETS", "load_preset", "preset_file",
    "shipped_presets",
]  # fmt: skip

PRESETS = Path(__file__).parent / "presets"
"""Folder of the presets that come with this package."""

UNET_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
"""Suffixes of the names of UNet layers that get LoRA."""
ENCODER_TARGETS = (
    "conv_in", "conv1", "conv2", "conv", "conv_shortcut", "conv_out", "to_q", "to_k", "to_v", "to_out.0",
)  # fmt: skip
"""Suffixes of the names of VAE encoder layers that get LoRA."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class VAEConfig:
    """Structure of the autoencoder (diffusers `AutoencoderKL`). Defaults: SD 2.1."""

    block_out_channels: tuple[Positive, ...] = (128, 256, 512, 512)
    layers_per_block: Positive = 2
    norm_num_groups: Positive = 32
    latent_channels: Positive = 4
    scaling_factor: float = 0.18215


@dataclass(frozen=True)
class UNetConfig:
    """Structure of the latent UNet (diffusers `UNet2DConditionModel`). Defaults: SD 2.1."""

    block_out_channels: tuple[Positive, ...] = (320, 640, 1280, 1280)
    layers_per_block: Positive = 2
    attention_heads: tuple[Positive, ...] = (5, 10, 20, 20)
    cross_attention_dim: Positive = 1024
    norm_num_groups: Positive = 32
    sample_size: Positive = 64


@dataclass(frozen=True)
class BaseConfig:
    """Frozen Stable Diffusion base.

    Attributes:
        source: local diffusers folder (a relative path is looked up in the preset's folder first), hub id, or "random".
        seed: seed of random weights and of a random prompt embedding.
        prompt: fixed text whose CLIP embedding conditions the UNet.
        prompt_tokens: length T of the prompt embedding [1, T, D].
    """

    source: str = "random"
    revision: str | None = None
    seed: int = 0
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    prompt: str = ""
    prompt_tokens: Positive = 77


@dataclass(frozen=True)
class DDPMConfig:
    """Frozen pixel DDPM whose middle-block features are the condition c.

    Attributes:
        source: local folder or file (looked up in the preset's folder first), hub id, or "random".
        layout: "diffusers" (a `UNet2DModel` folder) or "adm" (OpenAI's guided-diffusion key names, .safetensors or
            .pt). A source that is a file is read as "adm" in either case.
    """

    source: str = "random"
    layout: Literal["diffusers", "adm"] = "diffusers"
    seed: int = 0
    image_size: Positive = 256
    block_out_channels: tuple[Positive, ...] = (128, 128, 256, 256, 512, 512)
    layers_per_block: Positive = 2
    attention_levels: tuple[NonNegative, ...] = (4,)
    attention_head_dim: Positive | None = None
    norm_num_groups: Positive = 32


@dataclass(frozen=True)
class MFMConfig:
    """Multi-degradation feature modulation (MFM).

    Attributes:
        crops: number K of crops of each image, a square number because they form a square grid.
        crop_size: side R of a crop in pixels.
        condition_width, prompt_width: hidden widths of M for the condition c and for the learnable prompts p_i.
    """

    crops: Positive = 4
    crop_size: Positive = 256
    condition_width: Positive = 256
    prompt_width: Positive = 64

    def __post_init__(self) -> None:
        if math.isqrt(self.crops) ** 2 != self.crops:
            raise ConfigError(f"crops: {self.crops} is not a square number (1, 4, 9, ...): crops form a square grid")


@dataclass(frozen=True)
class LoRAConfig:
    """Parameter-efficient conditional LoRA (PLA).

    Attributes:
        rank: rank r of the low-rank matrices A and B.
        alpha: scale of the low-rank branch is alpha / rank.
        conditional: parts whose LoRA is conditional (CLoRA); LoRA is plain elsewhere (Tables 4 and 5).
        unet_targets, encoder_targets: suffixes of the names of layers that get LoRA.
    """

    rank: Positive = 8
    alpha: float = 8.0
    conditional: Literal["none", "unet", "unet+encoder"] = "unet"
    unet_targets: tuple[str, ...] = UNET_TARGETS
    encoder_targets: tuple[str, ...] = ENCODER_TARGETS


@dataclass(frozen=True)
class StepConfig:
    """The one diffusion step: timestep of the closed form, and Stable Diffusion's scaled-linear betas."""

    timestep: NonNegative = 999
    train_timesteps: Positive = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if self.timestep >= self.train_timesteps:
            raise ConfigError(f"timestep: {self.timestep} is not in the range 0 to {self.train_timesteps - 1}")


@dataclass(frozen=True)
class PostprocessConfig:
    """Post-processing (`dod.model.postprocess`), which the paper does not have.

    Attributes:
        filters: number F of filters that the sharpening kernel is a mixture of.
        taps: side of the filters in pixels, an odd number.
        window: side of the periodogram's windows in pixels, an odd number of at most `mfm.crop_size`.
        width: hidden width of the gate's networks.
        passing: conditions whose images bypass the model and are only sharpened; the model restores all others.
    """

    filters: Positive = 32
    taps: Annotated[int, msgspec.Meta(ge=3)] = 21
    window: Annotated[int, msgspec.Meta(ge=5)] = 31
    width: Annotated[int, msgspec.Meta(ge=2)] = 256
    passing: tuple[str, ...] = ("blur",)

    def __post_init__(self) -> None:
        for name in ("taps", "window"):
            if getattr(self, name) % 2 == 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not an odd number")


@dataclass(frozen=True)
class DetailConfig:
    """Detail enhancement modules, equation (6).

    Attributes:
        blocks: number of RRDBs in each module.
        narrow: factor by which the RRDBs are narrower than the decoder. 1 is the paper's; 2 cuts their cost to 40 %.
        dense: number of dense blocks in each RRDB. 3 is ESRGAN's; `dod.extras.prune` derives a model with fewer.
    """

    enabled: bool = True
    blocks: Positive = 2
    growth: Positive = 32
    narrow: Positive = 1
    dense: Positive = 3


@dataclass(frozen=True)
class Preset:
    """Complete description of a model.

    Attributes:
        name: name of the preset; a checkpoint refers to a shipped preset by it.
        folder: folder of the preset's file, where relative sources are looked up.
        postprocess: post-processing, or None for a model without it.
        conditions: degradations that the model is trained on.
        checkpoint: folder of the trained weights relative to `folder`, or None for an untrained model.
    """

    name: str
    folder: Path
    base: BaseConfig = field(default_factory=BaseConfig)
    ddpm: DDPMConfig = field(default_factory=DDPMConfig)
    mfm: MFMConfig = field(default_factory=MFMConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    step: StepConfig = field(default_factory=StepConfig)
    detail: DetailConfig = field(default_factory=DetailConfig)
    postprocess: PostprocessConfig | None = None
    conditions: tuple[str, ...] = ("haze", "rain", "noise", "blur", "low-light")
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if self.postprocess is not None and self.postprocess.window > self.mfm.crop_size:
            window, crop = self.postprocess.window, self.mfm.crop_size
            raise ConfigError(f"postprocess.window: {window} px is larger than mfm.crop_size = {crop} px")

    @property
    def vae_factor(self) -> int:
        """Number of pixels per latent position along one axis."""
        return 2 ** (len(self.base.vae.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Divisor of valid image sides in pixels: VAE factor x 2^(UNet levels - 1)."""
        return self.vae_factor * 2 ** (len(self.base.unet.block_out_channels) - 1)

    def locate(self, source: str) -> str:
        """Return the path of a source in the preset's folder if it exists there, else the source unchanged.

        Args:
            source: path or hub id.
        """
        beside = self.folder / source
        return str(beside) if beside.exists() else source


def load_preset(name: str | Path, overrides: dict[str, Any] | None = None) -> Preset:
    """Load a preset.

    Args:
        name: name of a shipped preset, folder with a `preset.yaml`, or YAML file.
        overrides: values by dotted key, such as {"lora.rank": 16}; they are validated like those of the file.

    Returns:
        The preset.

    Raises:
        ConfigError: there is no such preset, a key is unknown, or a value has the wrong type or is out of range.

    Example:
        >>> load_preset("tiny", {"lora.rank": 16}).lora.rank
        16
    """
    path = preset_file(name)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    try:
        return convert(override(values, overrides or {}), Preset, folder=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def shipped_presets() -> list[str]:
    """Return the names of the presets that come with this package. A local folder of that name is `./NAME`."""
    return sorted(path.parent.name for path in PRESETS.glob("*/preset.yaml"))


def preset_file(name: str | Path) -> Path:
    """Return the YAML file of a preset.

    Args:
        name: name of a shipped preset, folder with a `preset.yaml`, or YAML file.

    Raises:
        ConfigError: there is no such preset; the error names the nearest shipped one.
    """
    shipped = shipped_presets()
    if name in shipped:
        return PRESETS / name / "preset.yaml"
    candidate = Path(name)
    if candidate.is_dir():
        candidate = candidate / "preset.yaml"
    if candidate.suffix in {".yaml", ".yml"}:
        if not candidate.is_file():
            raise ConfigError(f"no preset file at {candidate}")
        return candidate
    raise ConfigError(f"no preset {str(name)!r}{did_you_mean(str(name), shipped)}: choose one of {', '.join(shipped)}")
