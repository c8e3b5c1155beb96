"""The DOD model: MFM, VAE encoder, one-step UNet and detail decoder, each with the inputs and outputs of its export."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Preset, StepConfig
from . import base, clora
from .detail import Decoder
from .modulation import MFM, ModulationNetwork, native_crops
from .postprocess import Gate, Postprocess


def alpha_bars(step: StepConfig) -> Tensor:
    """[T] float64: the cumulative products of 1 - beta for every timestep, scaled-linear betas."""
    roots = torch.linspace(
        step.beta_start**0.5, step.beta_end**0.5, step.train_timesteps, dtype=torch.float64, device="cpu"
    )
    return torch.cumprod(1 - roots**2, dim=0)


def alpha_bar(step: StepConfig) -> float:
    """The cumulative product at the step's timestep. SD at t = 999: 0.0046601."""
    return float(alpha_bars(step)[step.timestep])


def one_step(latent: Tensor, eps: Tensor, abar: float) -> Tensor:
    """The closed form z0 = (z - sqrt(1 - abar) eps) / sqrt(abar), in float32: at t = 999 it takes eps 14.6 times."""
    return (latent.float() - (1 - abar) ** 0.5 * eps.float()) / abar**0.5


class Encoder(nn.Module):
    """image [B, 3, H, W] in [-1, 1] -> latent [B, 4, H/8, W/8] float32 (posterior mode, scaled), skip_0..skip_3.

    skip_i is the input of the i-th down block.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.scaling_factor: float = vae.config["scaling_factor"]
        self.encoder, self.quant_conv = vae.encoder, cast(nn.Conv2d, vae.quant_conv)

    def forward(self, image: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """modulation: [B, N, 2, r], only where the encoder is conditional (Table 5's ablation)."""
        with clora.modulated(modulation):
            x = self.encoder.conv_in(image.to(self.encoder.conv_in.weight.dtype))
            skips = []
            for block in self.encoder.down_blocks:
                skips.append(x)
                x = block(x)
            x = self.encoder.mid_block(x)
            latent = self.latent(self.encoder.conv_act(self.encoder.conv_norm_out(x)))
        return latent, skips

    def latent(self, features: Tensor) -> Tensor:
        """The scaled mode [B, 4, H/8, W/8] float32, from what the last convolution takes."""
        moments = self.quant_conv(self.encoder.conv_out(features))
        return moments.float().chunk(2, dim=1)[0] * self.scaling_factor


class OneStepUNet(nn.Module):
    """latent [B, 4, h, w] float32, modulation [B, N, 2, r] -> latent_restored [B, 4, h, w] float32.

    One noise prediction at a fixed timestep with a fixed prompt embedding [1, T, D], then the closed form in float32.
    torch.compile takes it whole (fullgraph=True).
    """

    prompt: Tensor

    def __init__(self, unet: UNet2DConditionModel, prompt: Tensor, step: StepConfig) -> None:
        super().__init__()
        self.unet = unet
        self.timestep, self.alpha_bar = step.timestep, alpha_bar(step)
        self.register_buffer("prompt", prompt)

    def forward(self, latent: Tensor, modulation: Tensor | None = None) -> Tensor:
        return one_step(latent, self.predict_noise(latent, modulation), self.alpha_bar)

    def predict_noise(self, latent: Tensor, modulation: Tensor | None = None) -> Tensor:
        """eps [B, 4, h, w] as the network gives it, in its own dtype."""
        dtype = self.prompt.dtype
        prompt = self.prompt.expand(latent.shape[0], -1, -1)
        with clora.modulated(modulation):
            return self.unet(latent.to(dtype), self.timestep, prompt, return_dict=False)[0]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass. The modulation is handed to each recomputation explicitly, because
        the forward pass that held it is over by then."""

        def checkpointed(block: nn.Module, *args: object) -> object:
            def run(modulation: Tensor | None, *inputs: object) -> object:
                with clora.modulated(modulation):
                    return block(*inputs)

            return checkpoint(run, clora.current_modulation(), *args, use_reentrant=False)

        self.unet.enable_gradient_checkpointing(checkpointed)


class DOD(nn.Module):
    """One-step all-in-one restoration: image [B, 3, H, W] in [-1, 1] -> restored image [B, 3, H, W] float32.

    H and W must be multiples of `preset.size_multiple`. `layers` names the N conditional layers in the order of the
    modulation; `prototypes` holds the mean condition c [C] of each degradation, `statistics` [1 + C, C] the calibration
    set's mean of c and its covariance about them; `base_sha256` is the identity of the frozen weights.
    """

    def __init__(self, preset: Preset, parts: base.BaseParts) -> None:
        super().__init__()
        self.preset, self.base_sha256 = preset, parts.sha256
        lora = preset.lora
        for model in (parts.vae, parts.unet, parts.h_space):
            model.requires_grad_(False)
        clora.inject(parts.unet, lora.unet_targets, lora.rank, lora.alpha, lora.conditional != "none")
        clora.inject(parts.vae.encoder, lora.encoder_targets, lora.rank, lora.alpha, lora.conditional == "unet+encoder")
        count = clora.number_layers([parts.unet, parts.vae.encoder])
        self.layers = [f"unet.{name}" for name, _ in clora.conditional_layers(parts.unet)]
        self.layers += [f"encoder.{name}" for name, _ in clora.conditional_layers(parts.vae.encoder)]
        self.mfm = MFM(
            parts.h_space,
            ModulationNetwork(
                parts.h_space.channels, count, lora.rank, preset.mfm.condition_width, preset.mfm.prompt_width
            ),
        )
        self.mfm.network.requires_grad_(count > 0)
        self.encoder = Encoder(parts.vae)
        self.unet = OneStepUNet(parts.unet, parts.prompt, preset.step)
        self.decoder = Decoder(parts.vae, preset.detail)
        post = preset.postprocess
        self.gate = None if post is None else Gate(parts.h_space.channels, post)
        self.postprocess = None if post is None else Postprocess(post)
        self.prototypes: dict[str, Tensor] = {}
        self.statistics: Tensor | None = None
        self.eval()

    @classmethod
    def from_preset(cls, preset: Preset) -> DOD:
        """The untrained model on its base: LoRA and detail modules are the identity."""
        return cls(preset, base.load_base(preset))

    def crops(self, image: Tensor) -> Tensor:
        """The native crops [B, K, 3, R, R] of images [B, 3, H, W] in [-1, 1], of which c and the gate are computed."""
        mfm = self.preset.mfm
        all_alike = max(image.shape[-2:]) <= mfm.crop_size
        return native_crops(image, 1 if all_alike else mfm.crops, mfm.crop_size)

    def modulation(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the condition c [B, C] and the modulation [B, N, 2, r] of images [B, 3, H, W] in [-1, 1]."""
        return self.mfm(self.crops(image))

    def forward(self, image: Tensor, modulation: Tensor | None = None, crops: Tensor | None = None) -> Tensor:
        """Restore images on the path `auto`.

        modulation: [B, N, 2, r]; by default M's of the condition. crops: [B, K, 3, R, R] of the native images, where
        `image` is padded; by default those of `image`.
        """
        crops = self.crops(image) if crops is None else crops
        gated = self.gate is not None and self.postprocess is not None
        condition, own = self.mfm(crops) if gated or modulation is None else (None, None)
        modulation = own if modulation is None else modulation
        latent, skips = self.encode(image, modulation)
        decoded = self.decoder(self.unet(latent, modulation), skips)
        if self.gate is None or self.postprocess is None:
            return decoded
        return self.postprocess(decoded, image, *self.gate(crops, condition))

    def share(self, condition: str) -> float:
        """The share of the post-processing on a named path, 0 to 1: 0 where the model always restores."""
        post = self.preset.postprocess
        return 1.0 if post is not None and condition in post.passing else 0.0

    def encode(self, image: Tensor, modulation: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The encoder, given the modulation only where it is conditional."""
        return self.encoder(image, modulation if self.preset.lora.conditional == "unet+encoder" else None)

    def adaptation_parameters(self) -> dict[str, nn.Parameter]:
        """Stage 1's trainable parameters: the LoRA of UNet and encoder, the prompts and M, by checkpoint name."""
        named: dict[str, nn.Parameter] = {}
        for part, model in (("unet", self.unet.unet), ("encoder", self.encoder.encoder)):
            for name, layer in clora.adapted_layers(model):
                named[f"{part}.{name}.lora_A.weight"], named[f"{part}.{name}.lora_B.weight"] = clora.factors(layer)
        if self.layers:
            named |= {f"modulation.{name}": p for name, p in self.mfm.network.named_parameters()}
        return named

    def detail_parameters(self) -> dict[str, nn.Parameter]:
        """Stage 2's trainable parameters: the detail modules, by checkpoint name."""
        return {f"detail.{name}": p for name, p in self.decoder.detail.named_parameters()}

    def postprocess_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that `dod.extras.postprocess` fits, by checkpoint name: none without post-processing."""
        parts = {"gate": self.gate, "postprocess": self.postprocess}
        return {f"{k}.{name}": p for k, part in parts.items() if part for name, p in part.named_parameters()}

    def trained_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds of the model itself, by name."""
        parts = self.adaptation_parameters(), self.detail_parameters(), self.postprocess_parameters()
        return {name: tensor for part in parts for name, tensor in part.items()} | {"prompt": self.unet.prompt}


def sized_model(preset: Preset) -> DOD:
    """The model on the meta device, by its preset alone: to be counted, not run. No weights are read."""
    frozen, ddpm = replace(preset.base, source="random"), replace(preset.ddpm, source="random")
    with torch.device("meta"):
        return DOD.from_preset(replace(preset, base=frozen, ddpm=ddpm))
