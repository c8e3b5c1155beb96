"""What each training run minimises: the priors' objectives, and equations (7) to (13) of the two stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import FloatTensor, Tensor, nn

from ..config import StepConfig
from ..errors import TrainingError
from ..model import clora
from ..model.dod import DOD, alpha_bars
from .loop import Objective
from .losses import VGG, distribution_matching, multiscale, noised, predicted_x0, reconstruction, structural

KL_WEIGHT = 1e-6
TONE_WEIGHT = 2.0
DMD_TIMESTEPS = 20, 980
"""The timesteps at which distribution matching compares the two scores (Yin et al. 2024): not the very ends."""

Batch = Sequence[Tensor]


class Autoencoder(Objective):
    """L1, L1 of the means over a latent's square of pixels, and a small KL term.

    A latent that holds every edge but not its square's mean colour cannot be put right by any restoration of it. The
    batch is (degraded, clean, ...), of which clean is taken, as by the other priors.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = _trainable(vae)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        clean = batch[1].contiguous(memory_format=torch.channels_last)
        posterior = posterior_of(self.vae, clean)
        latent = posterior.mean + posterior.std * _normal(posterior.mean.shape, generator, clean.device)
        image = self.vae.decode(cast(FloatTensor, latent), return_dict=False)[0]
        error = image.float() - clean
        means = F.avg_pool2d(error, clean.shape[-1] // latent.shape[-1])
        return {
            "rec": error.abs().mean(),
            "tone": TONE_WEIGHT * means.abs().mean(),
            "kl": KL_WEIGHT * posterior.kl().mean(),
        }


class LatentNoise(Objective):
    """The epsilon objective in the latents of a frozen autoencoder, with a fixed prompt embedding."""

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, prompt: Tensor, step: StepConfig) -> None:
        super().__init__()
        self.vae, self.unet = vae.requires_grad_(False), _trainable(unet)
        self.register_buffer("prompt", prompt)
        self.register_buffer("abar", alpha_bars(step).float())

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            latent = posterior_of(self.vae, batch[1]).mode().float() * self.vae.config["scaling_factor"]
        text = cast(Tensor, self.prompt).expand(len(latent), -1, -1)
        abar = cast(Tensor, self.abar)
        return {"noise": noise_prediction(lambda x, t: self.unet(x, t, text).sample, latent, abar, generator)}


class PixelNoise(Objective):
    """The epsilon objective of a pixel DDPM (Ho et al. 2020), linear betas 1e-4 to 0.02.

    It learns the images of the batch as they come, degraded where the data set degrades them.
    """

    def __init__(self, ddpm: UNet2DModel) -> None:
        super().__init__()
        self.ddpm = _trainable(ddpm)
        self.register_buffer("abar", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0))

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        abar = cast(Tensor, self.abar)
        return {"noise": noise_prediction(lambda x, t: self.ddpm(x, t).sample, batch[0], abar, generator)}


class Restoration(Objective):
    """What the two stages share: a model of which only a part learns, and samples [3, H, W] to look at.

    tile: the condition is taken from a batch's whole images, but only a window of so many px of each, somewhere, is
    restored: what an image of usual size says of its degradation, at the cost of a small one. Of several sizes each
    batch takes one: what a normalisation over all of an image does depends on how much that is. None: all of it.

    named: share of the degraded images that are restored as on their condition's named path, by the modulation of its
    prototype (the batch's third entry counts in `preset.conditions`; what lies beyond is clean).
    """

    def __init__(self, model: DOD, tile: Sequence[int] = (), named: float = 0.0) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tile, self.named = tile, named
        prototypes = [model.prototypes.get(name) for name in model.preset.conditions]
        if named and any(each is None for each in prototypes):
            raise TrainingError(f"--named {named}: the model has no prototypes yet; run `stages calibrate` first")
        known = [each.float() for each in prototypes if each is not None]
        fixed = model.mfm.network(torch.stack(known)).detach() if named else torch.empty(0)
        self.register_buffer("fixed", fixed, persistent=False)
        self.samples: dict[str, tuple[Tensor, Tensor]] = {}

    def pair(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(modulation [B, N, 2, r], degraded, clean), the images cut to their tiles."""
        degraded, clean = batch[0].contiguous(memory_format=torch.channels_last), batch[1]
        _, modulation = self.model.modulation(degraded)
        if self.named:
            modulation = self._on_named_paths(modulation, batch[2], generator)
        if not self.tile:
            return modulation, degraded, clean
        size = self.tile[int(torch.randint(len(self.tile), (), generator=generator))]
        return modulation, *tiles(degraded, clean, size, generator)

    def _on_named_paths(self, modulation: Tensor, kinds: Tensor, generator: torch.Generator) -> Tensor:
        fixed = cast(Tensor, self.fixed)
        chosen = (torch.rand(len(kinds), generator=generator) < self.named).to(kinds.device) & (kinds < len(fixed))
        prototypes = fixed[kinds.clamp(max=len(fixed) - 1)].to(modulation.dtype)
        return torch.where(chosen[:, None, None, None], prototypes, modulation)

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """Degraded, restored and clean, side by side."""
        on = self.model.unet.prompt.device
        return {
            name: torch.cat([degraded, self.model(degraded[None].to(on))[0].cpu(), clean], dim=2)
            for name, (degraded, clean) in self.samples.items()
        }


class Adaptation(Restoration):
    """Stage 1, equation (11): L_data (7) through the frozen decoder, and L_dmd (10) in the latents; trains PLA only.

    rec, perceptual, dmd: the weights of equations (8), (9), (10); the perceptual term needs `vgg`. latent: of
    MSE(z0, the base encoder's latent of the clean image), single latents, 4 x 4 means and whole means alike. The
    closed form multiplies an error in eps by 14.6; a base of short training starts so far off that the image alone
    gives no useful gradient, the latent does. Where neither rec nor perceptual is wanted the decoder is not run.
    relative: rec and latent count each image's error relative to itself, see `dod.training.losses.reconstruction`.

    The real denoiser is the base UNet, the fake one the same with LoRA of its own, trained by L_diff on the restored
    latents, one step for each of the model's; both share the base's frozen weights with the model.
    """

    def __init__(
        self,
        model: DOD,
        rec: float = 1.0,
        perceptual: float = 2.0,
        dmd: float = 1.0,
        latent: float = 0.0,
        vgg: VGG | None = None,
        tile: Sequence[int] = (),
        relative: bool = False,
    ) -> None:
        super().__init__(model, tile)
        self._relative = relative
        self.weights = {"rec": rec, "perceptual": perceptual if vgg else 0.0, "dmd": dmd, "latent": latent}
        self.vgg = vgg
        self.target = clora.base_copy(model.encoder) if latent else None
        self.real = self.fake = None
        self._adaptation, self._fake = model.adaptation_parameters(), dict[str, nn.Parameter]()
        if dmd:
            unet, lora = model.unet.unet, model.preset.lora
            self.real, self.fake = clora.base_copy(unet), clora.base_copy(unet)
            clora.inject(self.fake, lora.unet_targets, lora.rank, lora.alpha, conditional=False)
            for name, layer in clora.adapted_layers(self.fake):
                for factor, parameter in zip("AB", clora.factors(layer), strict=True):
                    self._fake[f"fake.{name}.lora_{factor}.weight"] = parameter
        for parameter in (*self._adaptation.values(), *self._fake.values()):
            parameter.requires_grad_(True)
        self.register_buffer("abar", alpha_bars(model.preset.step).float(), persistent=False)

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        return [(1.0, members) for members in (self._adaptation, self._fake) if members]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        modulation, degraded, clean = self.pair(batch, generator)
        restored = self.model.unet(self.model.encode(degraded, modulation)[0], modulation)
        terms: dict[str, Tensor] = {}
        if self.weights["rec"] or self.weights["perceptual"]:
            image = self.model.decoder(restored)
            terms["rec"] = reconstruction(image, clean, self._relative)
            if self.vgg is not None:
                terms["perceptual"] = self.vgg(image, clean)
        if self.target is not None:
            with torch.no_grad():
                wanted, _ = self.target(clean)
            terms["latent"] = multiscale(restored, wanted, self._relative)
        if self.real is not None and self.fake is not None:
            terms["dmd"] = self._matching(restored, generator)
            fake = self._denoiser(self.fake)
            diff = noise_prediction(fake, restored.detach(), cast(Tensor, self.abar), generator)
        weighted = {key: self.weights[key] * value for key, value in terms.items() if self.weights[key]}
        return weighted if self.fake is None else {**weighted, "diff": diff}

    def _matching(self, restored: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.randint(*DMD_TIMESTEPS, (len(restored),), generator=generator).to(restored.device)
        abar = cast(Tensor, self.abar)[t][:, None, None, None]
        with torch.no_grad():
            noisy = noised(restored, _normal(restored.shape, generator, restored.device), abar)
            real, fake = (
                predicted_x0(noisy, self._denoiser(unet)(noisy, t), abar)
                for unet in (cast(nn.Module, self.real), cast(nn.Module, self.fake))
            )
        return distribution_matching(restored, real, fake)

    def _denoiser(self, unet: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        prompt = self.model.unet.prompt
        return lambda x, t: unet(x.to(prompt.dtype), t, prompt.expand(len(x), -1, -1), return_dict=False)[0]


class Detail(Restoration):
    """Stage 2, equation (13): L_rec and L_ssim (12); trains the detail modules alone.

    A module's w starts at 0 and gates all of it, so that it learns little while w is small. gate_start: what
    a w that is smaller is set to before the first step; gate_rate: how many times faster the w learn.

    decoder: whether the base's decoder learns with them, as the paper's, which is a strong one, need not: a decoder of
    short training puts an image's tone into whole-image statistics that the modules in front cannot correct. So
    that it stays an autoencoder's decoder, a quarter of the images is decoded without the modules too, with the
    weight `plain`; with 0 it may rely on them. decoder_rate: how many times faster than the modules it learns.

    relative: see `dod.training.losses.reconstruction`.
    """

    def __init__(
        self,
        model: DOD,
        rec: float = 1.0,
        ssim: float = 0.2,
        gate_rate: float = 1.0,
        gate_start: float = 0.0,
        decoder: bool = False,
        plain: float = 0.25,
        decoder_rate: float = 1.0,
        relative: bool = False,
        tile: Sequence[int] = (),
        named: float = 0.0,
    ) -> None:
        super().__init__(model, tile, named)
        self.weights = {"rec": rec, "ssim": ssim, "plain": plain if decoder else 0.0}
        modules = model.detail_parameters()
        self._learning = {name: parameter for name, parameter in modules.items() if parameter.ndim}
        self._gates = {name: parameter for name, parameter in modules.items() if not parameter.ndim}
        self._decoder = model.decoder.base_parameters() if decoder else {}
        for parameter in (*self._learning.values(), *self._decoder.values(), *self._gates.values()):
            parameter.requires_grad_(True)
        self._gate_rate, self._decoder_rate, self._relative = gate_rate, decoder_rate, relative
        for gate in self._gates.values():
            if abs(gate.item()) < gate_start:
                gate.data.fill_(gate_start)

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        groups = [(1.0, self._learning), (self._decoder_rate, self._decoder), (self._gate_rate, self._gates)]
        return [(rate, members) for rate, members in groups if members]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            modulation, degraded, clean = self.pair(batch, generator)
            latent, skips = self.model.encode(degraded, modulation)
            restored = self.model.unet(latent, modulation)
        image = self.model.decoder(restored, skips)
        terms = {"rec": self.weights["rec"] * reconstruction(image, clean, self._relative)}
        if self.weights["ssim"]:
            terms["ssim"] = self.weights["ssim"] * structural(image, clean)
        if self.weights["plain"]:
            some = math.ceil(len(clean) / 4)
            plain = reconstruction(self.model.decoder(restored[:some]), clean[:some], self._relative)
            terms["plain"] = self.weights["plain"] * plain
        return terms


def noise_prediction(
    predict: Callable[[Tensor, Tensor], Tensor], x0: Tensor, abar: Tensor, generator: torch.Generator
) -> Tensor:
    """MSE(eps, predict(sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, t)) with t uniform (Ho et al. 2020, equation (14))."""
    t = torch.randint(0, len(abar), (len(x0),), generator=generator).to(x0.device)
    eps = _normal(x0.shape, generator, x0.device)
    noisy = noised(x0, eps, abar[t][:, None, None, None]).contiguous(memory_format=torch.channels_last)
    return F.mse_loss(predict(noisy, t).float(), eps)


def tiles(degraded: Tensor, clean: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same window [B, 3, size, size] of a batch's pairs [B, 3, H, W], another one of each.

    Raises TrainingError where an image is smaller.
    """
    room = [side - size for side in clean.shape[-2:]]
    if min(room) < 0:
        height, width = clean.shape[-2:]
        raise TrainingError(f"a tile of {size} px does not fit an image of {width}x{height}: take a larger --crop")
    corners = [[int(torch.randint(r + 1, (), generator=generator)) for r in room] for _ in range(len(clean))]
    first, second = (
        torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(each, corners, strict=True)])
        for each in (degraded, clean)
    )
    return first.contiguous(memory_format=torch.channels_last), second


def posterior_of(vae: AutoencoderKL, image: Tensor) -> DiagonalGaussianDistribution:
    """The encoder's distribution over latents, not scaled."""
    return cast(DiagonalGaussianDistribution, vae.encode(image, return_dict=False)[0])


def _trainable(model: Any) -> Any:
    return model.to(memory_format=torch.channels_last).requires_grad_(True).train()


def _normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(tuple(shape), generator=generator).to(device)
