"""Objectives of the paper's two stages, equations (7) to (13): adaptation and detail enhancement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..model import clora
from ..model.dod import DOD, alpha_bars
from .loop import Objective
from .losses import VGG, distribution_matching, multiscale, noised, predicted_x0, reconstruction, structural
from .objectives import Batch, noise_prediction, standard_normal

__all__ = ["AdaptationObjective", "DetailObjective", "RestorationObjective", "random_windows"]

DMD_TIMESTEPS = 20, 980
"""Range of the timesteps at which distribution matching compares the two scores (Yin et al. 2024)."""


class RestorationObjective(Objective):
    """Base of the two stages' objectives: a model of which a part is trained, and images that show its progress.

    Args:
        model: the model; all of it is frozen here.
        tile_size: sides in px of the random window of each image that is restored, of which each batch draws one; empty
            for whole images. The condition c still comes from the whole image. Several sizes matter because
            normalization over an image depends on its size.
        named: fraction of degraded images that are restored on their named condition path, with the modulation of their
            prototype. The batch's third entry counts in `preset.conditions`; larger indices are clean images.

    Raises:
        TrainingError: `named` is given and a condition has no prototype.
    """

    def __init__(self, model: DOD, tile_size: Sequence[int] = (), named: float = 0.0) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tile_size, self.named = tile_size, named
        prototypes = [model.prototypes.get(name) for name in model.preset.conditions]
        if named and any(each is None for each in prototypes):
            raise TrainingError(f"--named {named}: the model has no prototypes: run `dod-train calibrate` first")
        present = [each.float() for each in prototypes if each is not None]
        merged = model.mfm.network(torch.stack(present)).detach() if named else torch.empty(0)
        self.register_buffer("merged", merged, persistent=False)
        self.samples: dict[str, tuple[Tensor, Tensor]] = {}

    def pair(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the modulation of a batch, and its images cut to windows.

        Args:
            batch: (degraded, clean, index), images [B, 3, H, W] in -1 to 1.
            generator: CPU generator of windows and paths.

        Returns:
            (modulation [B, N, 2, r], degraded, clean).
        """
        degraded, clean = batch[0].contiguous(memory_format=torch.channels_last), batch[1]
        _, modulation = self.model.modulation(degraded)
        if self.named:
            modulation = self._with_named_paths(modulation, batch[2], generator)
        if not self.tile_size:
            return modulation, degraded, clean
        size = self.tile_size[int(torch.randint(len(self.tile_size), (), generator=generator))]
        return modulation, *random_windows(degraded, clean, size, generator)

    def _with_named_paths(self, modulation: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
        merged = cast(Tensor, self.merged)
        named = (torch.rand(len(indices), generator=generator) < self.named).to(indices.device)
        chosen = named & (indices < len(merged))
        prototypes = merged[indices.clamp(max=len(merged) - 1)].to(modulation.dtype)
        return torch.where(chosen[:, None, None, None], prototypes, modulation)

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """Return degraded, restored and clean images side by side."""
        device = self.model.unet.prompt.device
        return {
            name: torch.cat([degraded, self.model(degraded[None].to(device))[0].cpu(), clean], dim=2)
            for name, (degraded, clean) in self.samples.items()
        }


class AdaptationObjective(RestorationObjective):
    """Stage 1, Eq. (11): L_data (7) through the frozen decoder and L_dmd (10) in the latents. Trains the PLA only.

    The latent term is MSE(z0, the base encoder's latent of the clean image) at three scales: single latents, 4 x 4
    means and whole means. The closed form multiplies an error in eps by 14.6. A base of short training starts so far
    from the target that the image loss gives no useful gradient, and the latent term does. Without rec and perceptual
    terms the decoder is not run.

    For distribution matching, the real denoiser is the base UNet, and the fake one is the same UNet with a LoRA of its
    own, trained by L_diff on the restored latents, one step for each step of the model. Both share the base's weights.

    Args:
        model: the model.
        rec: weight of the reconstruction term (8).
        perceptual: weight of the perceptual term (9), which needs `vgg`.
        dmd: weight of the distribution matching term (10).
        latent: weight of the latent term.
        vgg: features of the perceptual term.
        tile_size: see `RestorationObjective`.
        relative: use the logarithm of each image's error in rec and latent; see `dod.training.losses.reconstruction`.
    """

    def __init__(
        self,
        model: DOD,
        rec: float = 1.0,
        perceptual: float = 2.0,
        dmd: float = 1.0,
        latent: float = 0.0,
        vgg: VGG | None = None,
        tile_size: Sequence[int] = (),
        relative: bool = False,
    ) -> None:
        super().__init__(model, tile_size)
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
        """Return the PLA and, with distribution matching, the LoRA of the fake denoiser; see `Objective.groups`."""
        return [(1.0, members) for members in (self._adaptation, self._fake) if members]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the terms "rec", "perceptual", "latent", "dmd" that have a weight, and "diff" of the fake denoiser.

        Args:
            batch: (degraded, clean, ...), images [B, 3, H, W] in -1 to 1.
            generator: CPU generator of windows, timesteps and noise.

        Returns:
            Weighted loss terms by name.
        """
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
                target, _ = self.target(clean)
            terms["latent"] = multiscale(restored, target, self._relative)
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
            noisy = noised(restored, standard_normal(restored.shape, generator, restored.device), abar)
            real, fake = (
                predicted_x0(noisy, self._denoiser(unet)(noisy, t), abar)
                for unet in (cast(nn.Module, self.real), cast(nn.Module, self.fake))
            )
        return distribution_matching(restored, real, fake)

    def _denoiser(self, unet: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        prompt = self.model.unet.prompt
        return lambda x, t: unet(x.to(prompt.dtype), t, prompt.expand(len(x), -1, -1), return_dict=False)[0]


class DetailObjective(RestorationObjective):
    """Stage 2, Eq. (13): L_rec and L_ssim (12). Trains the detail modules and, on request, the decoder of the base.

    w, the weight of a module's output, starts at 0. Since it scales the module's gradient, the module learns little
    while w is small.

    The paper's decoder is strong and stays frozen. A decoder of short training puts an image's tone into whole-image
    statistics that the modules before it cannot correct, so that it has to be trained with them. To keep it usable
    without the modules, a quarter of the images is also decoded without them (`plain`).

    Args:
        model: the model.
        rec: weight of the reconstruction term (8).
        ssim: weight of the SSIM term (12).
        w_lr_multiplier: learning rate of w as a multiple of the schedule's.
        w_start: minimum absolute value of w before the first step; a smaller w is set to it.
        decoder: train the decoder of the base.
        plain: weight of the reconstruction without modules, if the decoder is trained; with 0 the decoder may rely on
            them.
        decoder_lr_multiplier: learning rate of the decoder as a multiple of the schedule's.
        relative: use the logarithm of each image's error; see `dod.training.losses.reconstruction`.
        tile_size: see `RestorationObjective`.
        named: see `RestorationObjective`.
    """

    def __init__(
        self,
        model: DOD,
        rec: float = 1.0,
        ssim: float = 0.2,
        w_lr_multiplier: float = 1.0,
        w_start: float = 0.0,
        decoder: bool = False,
        plain: float = 0.25,
        decoder_lr_multiplier: float = 1.0,
        relative: bool = False,
        tile_size: Sequence[int] = (),
        named: float = 0.0,
    ) -> None:
        super().__init__(model, tile_size, named)
        self.weights = {"rec": rec, "ssim": ssim, "plain": plain if decoder else 0.0}
        modules = model.detail_parameters()
        self._detail = {name: parameter for name, parameter in modules.items() if parameter.ndim}
        self._w = {name: parameter for name, parameter in modules.items() if not parameter.ndim}
        self._decoder = model.decoder.base_parameters() if decoder else {}
        for parameter in (*self._detail.values(), *self._decoder.values(), *self._w.values()):
            parameter.requires_grad_(True)
        self._w_lr_multiplier, self._decoder_lr_multiplier = w_lr_multiplier, decoder_lr_multiplier
        self._relative = relative
        for w in self._w.values():
            if abs(w.item()) < w_start:
                w.data.fill_(w_start)

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """Return the detail modules, the decoder if it is trained, and the weights w; see `Objective.groups`."""
        groups = [
            (1.0, self._detail),
            (self._decoder_lr_multiplier, self._decoder),
            (self._w_lr_multiplier, self._w),
        ]
        return [(multiplier, members) for multiplier, members in groups if members]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the terms "rec", "ssim" and "plain" that have a weight.

        Args:
            batch: (degraded, clean, index), images [B, 3, H, W] in -1 to 1.
            generator: CPU generator of windows and paths.

        Returns:
            Weighted loss terms by name.
        """
        with torch.no_grad():
            modulation, degraded, clean = self.pair(batch, generator)
            latent, skips = self.model.encode(degraded, modulation)
            restored = self.model.unet(latent, modulation)
        image = self.model.decoder(restored, skips)
        terms = {"rec": self.weights["rec"] * reconstruction(image, clean, self._relative)}
        if self.weights["ssim"]:
            terms["ssim"] = self.weights["ssim"] * structural(image, clean)
        if self.weights["plain"]:
            quarter = math.ceil(len(clean) / 4)
            plain = reconstruction(self.model.decoder(restored[:quarter]), clean[:quarter], self._relative)
            terms["plain"] = self.weights["plain"] * plain
        return terms


def random_windows(degraded: Tensor, clean: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut a random window from each image pair of a batch, the same one from both images.

    Args:
        degraded: [B, 3, H, W].
        clean: [B, 3, H, W].
        size: side of the windows in px.
        generator: CPU generator of the positions.

    Returns:
        Two tensors [B, 3, size, size].

    Raises:
        TrainingError: the images are smaller than the window.
    """
    room = [side - size for side in clean.shape[-2:]]
    if min(room) < 0:
        height, width = clean.shape[-2:]
        raise TrainingError(f"--tile-size {size} does not fit an image of {width}x{height} px: use a larger --crop")
    corners = [[int(torch.randint(r + 1, (), generator=generator)) for r in room] for _ in range(len(clean))]
    first, second = (
        torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(each, corners, strict=True)])
        for each in (degraded, clean)
    )
    return first.contiguous(memory_format=torch.channels_last), second
