"""The PyTorch model that a bundle was built from, run component by component as the bundle's own are."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dod.checkpoint import load_model
from dod.model import clora
from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BundleError
from dod_runtime.restorer import Observer
from export.fingerprints import hash_model
from export.graphs.conditions import modulation_of
from export.graphs.fp16 import fp16_copy

__all__ = ["TorchModel", "load_reference", "modulations_of", "strict_float32"]


def load_reference(
    bundle: Bundle, checkpoint: str | None = None, base: str | None = None, ddpm: str | None = None
) -> DOD:
    """The model that the bundle names, or `checkpoint`, in float32 on the CPU. base, ddpm: as `load_model` takes them.

    Raises BundleError where the bundle names none, where the model stands on another base, was trained on since or does
    not know one of the bundle's conditions, and what `dod.checkpoint.load_model` raises.
    """
    stated = bundle.manifest.model
    source = checkpoint or stated.get("checkpoint") or stated.get("preset")
    if not source:
        raise BundleError(f"{bundle.folder} does not say what it was built from: name it with --checkpoint")
    model = load_model(source, base, ddpm)
    if stated.get("base_sha256") != model.base_sha256:
        raise BundleError(
            f"{bundle.folder} was built on the base {_short(stated.get('base_sha256'))}, and {source} stands on "
            f"{_short(model.base_sha256)}: name the checkpoint it was built from with --checkpoint"
        )
    if stated.get("checkpoint_sha256", trained := hash_model(model)) != trained:
        raise BundleError(
            f"{bundle.folder} was built from the checkpoint {_short(stated['checkpoint_sha256'])}, and {source} is "
            f"{_short(trained)}: build it anew, or name the checkpoint it was built from with --checkpoint"
        )
    missing = [name for name in bundle.manifest.conditions if name not in model.prototypes]
    if missing:
        raise BundleError(f"{bundle.folder} has the condition {missing[0]}, and {source} does not: name its checkpoint")
    return model


def modulations_of(model: DOD) -> dict[str, Tensor]:
    """gamma and beta at each prototype, computed from the model and not read from a bundle: float32 [N, 2, r]."""
    return {name: torch.from_numpy(modulation_of(model, name)) for name in model.prototypes}


class TorchModel:
    """PyTorch eager on one device. `auto` is the full model; a condition has its UNet and encoder merged.

    precision: `fp32`, or `fp16` but for the `islands` (None: the default ones). `model` is left as it is.
    """

    def __init__(self, model: DOD, device: str, precision: str, fp32_modules: Sequence[str] | None = None) -> None:
        self.backend, self.precision = f"pytorch_{device}", precision
        self.description = f"PyTorch {torch.__version__} eager on {device}, {precision}"
        self._device, self._modulations = torch.device(device), modulations_of(model)
        self._model = (copy.deepcopy(model) if precision == "fp32" else fp16_copy(model, fp32_modules)).to(self._device)
        self._prototypes = {name: c[None].to(self._device) for name, c in model.prototypes.items()}
        self._encoder = clora.merged_copy(self._model.encoder)
        self._unets: dict[str, nn.Module] = {}

    def merge(self, conditions: Sequence[str]) -> None:
        """Makes the merged UNets of these conditions, and forgets all others."""
        self._unets = {name: unet for name, unet in self._unets.items() if name in conditions}
        for name in conditions:
            if name not in self._unets:
                self._unets[name] = clora.merged_copy(self._model.unet, self._modulations[name].to(self._device))

    @torch.inference_mode()
    def run_components(
        self, images: np.ndarray, crops: np.ndarray | None, condition: str, observe: Observer | None = None
    ) -> np.ndarray:
        """As `dod_runtime.Restorer.run_components`: float32 [B, 3, H, W] in and out, crops where the path takes any."""
        modulation, encoder, unet = None, self._encoder, self._unets.get(condition)
        model, share = self._model, self._model.share(condition)
        if condition == "auto":
            encoder, unet = model.encoder, model.unet
            with self._observed("mfm", observe):
                described, modulation = model.mfm(self._upload(crops))
        elif share:
            described = self._prototypes[condition].expand(len(images), -1)
        assert unet is not None, f"{condition} was not merged"
        with self._observed("encoder", observe):
            latent, skips = encoder(self._upload(images))
        with self._observed("unet", observe):
            restored = unet(latent, modulation)
        with self._observed("decoder", observe):
            image = model.decoder(restored, skips)
        if model.gate is not None and model.postprocess is not None and (condition == "auto" or share):
            with self._observed("gate", observe):
                found, gains = model.gate(self._upload(crops), described.float())
                found = found if condition == "auto" else torch.full_like(found, share)
                image = model.postprocess(image.float(), self._upload(images), found, gains)
        return image.float().cpu().numpy()

    def _upload(self, array: np.ndarray | None) -> Tensor:
        assert array is not None
        return torch.from_numpy(array).to(self._device)

    @contextmanager
    def _observed(self, part: str, observe: Observer | None) -> Iterator[None]:
        elapsed = self._stopwatch() if observe else None
        yield
        if observe and elapsed:
            observe(part, elapsed())

    def _stopwatch(self) -> Callable[[], float]:
        """Starts a clock on the device; the function returned gives the seconds since, all work so far done."""
        if self._device.type != "cuda":
            began = time.perf_counter_ns()
            return lambda: (time.perf_counter_ns() - began) / 1e9
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()

        def elapsed() -> float:
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3

        return elapsed


@contextmanager
def strict_float32() -> Iterator[None]:
    """Without TF32, PyTorch's default for convolutions on a GPU: for the image that all others are judged by."""
    flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def _short(digest: object) -> str:
    return f"{digest[:12]}..." if isinstance(digest, str) else "(not stated)"
