"""Presets: YAML files read into frozen dataclasses. An unknown key or a value of the wrong kind is a `ConfigError`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from .errors import ConfigError

PRESETS = Path(__file__).parent / "presets"

UNET_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
ENCODER_TARGETS = (
    "conv_in", "conv1", "conv2", "conv", "conv_shortcut", "conv_out", "to_q", "to_k", "to_v", "to_out.0",
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder's shape (diffusers `AutoencoderKL`), for building one from nothing. Factor 8, 4 levels."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4
    scaling_factor: float = 0.18215


@dataclass(frozen=True)
class UNetConfig:
    """The latent UNet's shape (diffusers `UNet2DConditionModel`), for building one from nothing."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    cross_attention_dim: int = 1024
    norm_num_groups: int = 32
    sample_size: int = 64


@dataclass(frozen=True)
class BaseConfig:
    """The frozen Stable Diffusion base.

    source: a local diffusers folder (relative ones are looked up beside the preset), a hub id, or "random".
    """

    source: str = "random"
    revision: str | None = None
    seed: int = 0
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    prompt: str = ""
    prompt_tokens: int = 77


@dataclass(frozen=True)
class DDPMConfig:
    """The frozen pixel DDPM whose middle features are the condition c.

    layout: "diffusers" (a `UNet2DModel` folder) or "adm" (OpenAI's guided-diffusion key names, .safetensors or .pt). A
    source that is a file is read as "adm" in either case.
    """

    source: str = "random"
    layout: Literal["diffusers", "adm"] = "diffusers"
    seed: int = 0
    image_size: int = 256
    block_out_channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    layers_per_block: int = 2
    attention_levels: tuple[int, ...] = (4,)
    attention_head_dim: int | None = None
    norm_num_groups: int = 32


@dataclass(frozen=True)
class MFMConfig:
    """Multi-degradation feature modulation: crops (K, a square number), their side R, and M's widths."""

    crops: int = 4
    crop_size: int = 256
    condition_width: int = 256
    prompt_width: int = 64

    def __post_init__(self) -> None:
        if self.crops < 1 or math.isqrt(self.crops) ** 2 != self.crops:
            raise ConfigError(f"crops: {self.crops} is not a square number (1, 4, 9): they lie on a square grid")


@dataclass(frozen=True)
class LoRAConfig:
    """Parameter-efficient adaptation. conditional: where CLoRA stands; elsewhere LoRA is plain (Tables 4 and 5)."""

    rank: int = 8
    alpha: float = 8.0
    conditional: Literal["none", "unet", "unet+encoder"] = "unet"
    unet_targets: tuple[str, ...] = UNET_TARGETS
    encoder_targets: tuple[str, ...] = ENCODER_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank: {self.rank} is not at least 1")


@dataclass(frozen=True)
class StepConfig:
    """The one diffusion step: SD's scaled-linear betas and the timestep of the closed form."""

    timestep: int = 999
    train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if not 0 <= self.timestep < self.train_timesteps:
            raise ConfigError(f"timestep: {self.timestep} is not one of 0 to {self.train_timesteps - 1}")


@dataclass(frozen=True)
class PostprocessConfig:
    """Post-processing (`dod.model.postprocess`), which the paper does not have.

    filters: number of filters that the sharpening kernel is mixed from; taps: their side in px; window: side of the
    periodogram's windows in px, at most `mfm.crop_size`; width: of the gate's networks. passing: conditions whose
    images pass the model, to be sharpened only; the model restores all others.
    """

    filters: int = 32
    taps: int = 21
    window: int = 31
    width: int = 256
    passing: tuple[str, ...] = ("blur",)

    def __post_init__(self) -> None:
        for name, least in (("filters", 1), ("taps", 3), ("window", 5), ("width", 2)):
            value = getattr(self, name)
            if value < least or (name in ("taps", "window") and value % 2 == 0):
                odd = "an odd number of " if name in ("taps", "window") else ""
                raise ConfigError(f"{name}: {value} is not {odd}at least {least}")


@dataclass(frozen=True)
class DetailConfig:
    """Detail enhancement (equation (6)): RRDBs per module, their growth, by how much narrower than the decoder they
    are (1: the paper's; with 2 they cost two fifths of it), and dense blocks in each RRDB (3: ESRGAN's; fewer are made
    of a trained model's by `dod.extras.prune`)."""

    enabled: bool = True
    blocks: int = 2
    growth: int = 32
    narrow: int = 1
    dense: int = 3

    def __post_init__(self) -> None:
        for name in ("blocks", "growth", "narrow", "dense"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not at least 1")


@dataclass(frozen=True)
class Preset:
    """Everything that fixes a model. `folder` is where the file lay: relative sources are looked up there."""

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
            raise ConfigError(
                f"postprocess.window: {self.postprocess.window} px do not fit the MFM's crops of {self.mfm.crop_size}"
            )

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position along one axis."""
        return 2 ** (len(self.base.vae.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Sides of an image must be multiples of this: VAE factor x 2^(UNet levels - 1)."""
        return self.vae_factor * 2 ** (len(self.base.unet.block_out_channels) - 1)

    def locate(self, source: str) -> str:
        """A source as given if it is absolute or a hub id; beside the preset if such a folder or file is there."""
        beside = self.folder / source
        return str(beside) if beside.exists() else source


def load_preset(name: str | Path, overrides: dict[str, Any] | None = None) -> Preset:
    """Read a preset by name (`mini`), folder or YAML file.

    overrides: dotted keys and values, such as {"lora.rank": 16}, checked like the file's own.
    Raises ConfigError naming the key, the value and the nearest valid key.
    """
    path = preset_file(name)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path}: {key}: {parent} holds {node!r}, not keys and values")
        node[last] = value
    return _read(Preset, values, str(path), folder=path.parent)


def shipped_presets() -> list[str]:
    """The names of the presets that come with this package. A folder of the same name is given as `./mini`."""
    return sorted(path.parent.name for path in PRESETS.glob("*/preset.yaml"))


def preset_file(name: str | Path) -> Path:
    """The YAML file of a preset by name, folder or file. ConfigError where there is none."""
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
    raise ConfigError(f"no preset {str(name)!r}; shipped are {', '.join(shipped)}{_nearest(str(name), shipped)}")


def _nearest(word: str, valid: list[str]) -> str:
    match = difflib.get_close_matches(word, valid, n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _read(kind: type, values: dict[str, Any], where: str, **given: Any) -> Any:
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in given}
    for key in values:
        if key not in hints:
            valid = list(hints)
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(str(key), valid)} (valid: {', '.join(valid)})")
    required = [f.name for f in dataclasses.fields(kind) if _is_required(f) and f.name not in {*values, *given}]
    if required:
        raise ConfigError(f"{where}: missing key {required[0]!r}")
    read = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**read, **given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected keys and values, found {value!r}")
        return _read(cast(type, hint), value, where)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
