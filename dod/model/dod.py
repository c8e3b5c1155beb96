"""DOD model: MFM, VAE encoder, one-step UNet and detail decoder, with the same inputs and outputs as in the export."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Preset, StepConfig
from . import base, clora
from .closed_form import alpha_bar, alpha_bars, one_step
from .detail import Decoder
from .modulation import MFM, ModulationNetwork, native_crops
from .postprocess import Gate, Postprocess

__all__ = ["DOD", "Encoder", "OneStepUNet", "alpha_bar", "alpha_bars", "one_step", "sized_model"]


class Encoder(nn.Module):
    """VAE encoder with LoRA: image -> latent, skip_0..skip_3.

    The latent is the mode of the posterior times the scaling factor. skip_i is the input of the i-th down block.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.scaling_factor: float = vae.config["scaling_factor"]
        self.encoder, self.quant_conv = vae.encoder, cast(nn.Conv2d, vae.quant_conv)

    def forward(self, image: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode images.

        Args:
            image: [B, 3, H, W] in [-1, 1].
            modulation: [B, N, 2, r], if the encoder's LoRA is conditional (ablation of Table 5).

        Returns:
            The latent, [B, 4, H/8, W/8] float32, and the list of skips.
        """
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
        """Return the scaled mode of the posterior, [B, 4, H/8, W/8] float32.

        Args:
            features: input of the encoder's last convolution, [B, C, H/8, W/8].
        """
        moments = self.quant_conv(self.encoder.conv_out(features))
        return moments.float().chunk(2, dim=1)[0] * self.scaling_factor


class OneStepUNet(nn.Module):
    """One-step diffusion UNet: latent, modulation -> latent_restored.

    It predicts the noise once, at a fixed timestep with a fixed prompt embedding [1, T, D], and applies the closed form
    `one_step`. torch.compile supports it with fullgraph=True.
    """

    prompt: Tensor

    def __init__(self, unet: UNet2DConditionModel, prompt: Tensor, step: StepConfig) -> None:
        super().__init__()
        self.unet = unet
        self.timestep, self.alpha_bar = step.timestep, alpha_bar(step)
        self.register_buffer("prompt", prompt)

    def forward(self, latent: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Restore a latent.

        Args:
            latent: [B, 4, h, w] float32.
            modulation: [B, N, 2, r], or None if no layer is conditional.

        Returns:
            The restored latent, [B, 4, h, w] float32.
        """
        return one_step(latent, self.predict_noise(latent, modulation), self.alpha_bar)

    def predict_noise(self, latent: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Return the predicted noise eps, [B, 4, h, w], in the dtype of the network.

        Args:
            latent: [B, 4, h, w].
            modulation: [B, N, 2, r], or None if no layer is conditional.
        """
        dtype = self.prompt.dtype
        prompt = self.prompt.expand(latent.shape[0], -1, -1)
        with clora.modulated(modulation):
            return self.unet(latent.to(dtype), self.timestep, prompt, return_dict=False)[0]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the UNet's blocks in the backward pass, to save memory in training.

        The modulation is an argument of each recomputation, because the forward pass that set it has ended by then.
        """

        def checkpointed(block: nn.Module, *args: object) -> object:
            def run(modulation: Tensor | None, *inputs: object) -> object:
                with clora.modulated(modulation):
                    return block(*inputs)

            return checkpoint(run, clora.current_modulation(), *args, use_reentrant=False)

        self.unet.enable_gradient_checkpointing(checkpointed)


class DOD(nn.Module):
    """One-step all-in-one restoration: image [B, 3, H, W] in [-1, 1] -> restored image [B, 3, H, W] float32.

    H and W must be multiples of `preset.size_multiple`.

    Attributes:
        layers: names of the N conditional layers in the order of the modulation.
        prototypes: mean condition c of each degradation, [C] by name.
        statistics: mean of c over the calibration set, and covariance of c within the degradations, [1 + C, C]. None
            before the calibration.
        base_sha256: identity of the frozen weights.
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
        """Build the untrained model, whose LoRA and detail modules are the identity.

        Args:
            preset: description of the model and sources of its base.

        Raises:
            CheckpointError: the base is missing or does not match the preset.
        """
        return cls(preset, base.load_base(preset))

    def crops(self, image: Tensor) -> Tensor:
        """Return the native crops, [B, K, 3, R, R], that the condition c and the gate are computed from.

        Args:
            image: [B, 3, H, W] in [-1, 1].
        """
        mfm = self.preset.mfm
        fits = max(image.shape[-2:]) <= mfm.crop_size  # then all crops would be equal
        return native_crops(image, 1 if fits else mfm.crops, mfm.crop_size)

    def modulation(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the condition c, [B, C], and the modulation, [B, N, 2, r].

        Args:
            image: [B, 3, H, W] in [-1, 1].
        """
        return self.mfm(self.crops(image))

    def forward(self, image: Tensor, modulation: Tensor | None = None, crops: Tensor | None = None) -> Tensor:
        """Restore images, by default on the condition path `auto`.

        A gate predicts the share of the post-processing whatever the modulation is. The named condition paths of an
        export have the share that `share` returns instead.

        Args:
            image: [B, 3, H, W] in [-1, 1].
            modulation: [B, N, 2, r] of another condition. By default that of each image's own condition c.
            crops: crops of the native images, [B, K, 3, R, R], if `image` is padded. By default those of `image`.

        Returns:
            The restored images, [B, 3, H, W] float32, in about [-1, 1], not clipped.
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
        """Return the weight of the sharpened input on a named condition path.

        It is 1 for a condition whose images bypass the model (`postprocess.passing`), otherwise 0.

        Args:
            condition: name of the condition.
        """
        post = self.preset.postprocess
        return 1.0 if post is not None and condition in post.passing else 0.0

    def encode(self, image: Tensor, modulation: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder, with the modulation if its LoRA is conditional.

        Args:
            image: [B, 3, H, W] in [-1, 1].
            modulation: [B, N, 2, r], or None if no layer is conditional.

        Returns:
            The latent, [B, 4, H/8, W/8] float32, and the list of skips.
        """
        return self.encoder(image, modulation if self.preset.lora.conditional == "unet+encoder" else None)

    def adaptation_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that stage 1 trains, by checkpoint name: LoRA of UNet and encoder, prompts and M."""
        named: dict[str, nn.Parameter] = {}
        for part, model in (("unet", self.unet.unet), ("encoder", self.encoder.encoder)):
            for name, layer in clora.adapted_layers(model):
                named[f"{part}.{name}.lora_A.weight"], named[f"{part}.{name}.lora_B.weight"] = clora.factors(layer)
        if self.layers:
            named |= {f"modulation.{name}": p for name, p in self.mfm.network.named_parameters()}
        return named

    def detail_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that stage 2 trains, by checkpoint name: the detail modules."""
        return {f"detail.{name}": p for name, p in self.decoder.detail.named_parameters()}

    def postprocess_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that `dod-train postprocess` fits, by checkpoint name; none without post-processing."""
        parts = {"gate": self.gate, "postprocess": self.postprocess}
        return {f"{k}.{name}": p for k, part in parts.items() if part for name, p in part.named_parameters()}

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return the trained parameters and the prompt embedding, by checkpoint name."""
        parts = self.adaptation_parameters(), self.detail_parameters(), self.postprocess_parameters()
        return {name: tensor for part in parts for name, tensor in part.items()} | {"prompt": self.unet.prompt}


def sized_model(preset: Preset) -> DOD:
    """Return the model of a preset on the meta device, without reading weights. It can be counted, not run.

    Args:
        preset: description of the model; the sources of its base are ignored.
    """
    frozen, ddpm = replace(preset.base, source="random"), replace(preset.ddpm, source="random")
    with torch.device("meta"):
        return DOD.from_preset(replace(preset, base=frozen, ddpm=ddpm))
