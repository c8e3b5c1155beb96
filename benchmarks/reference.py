"""The PyTorch model that a bundle was built from, timed component by component like the bundle."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dod.checkpoint import load_model
from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BundleError
from dod_runtime.restorer import Observer
from export.fingerprints import hash_model
from export.graphs.condition_files import modulation_of
from export.graphs.fp16 import fp16_copy
from export.parity.reference import TorchPipeline

__all__ = ["TorchModel", "load_reference", "modulations_of", "strict_float32"]


def load_reference(
    bundle: Bundle, checkpoint: str | None = None, base: str | None = None, ddpm: str | None = None
) -> DOD:
    """Load the model that a bundle was built from, in float32 on the CPU.

    Args:
        bundle: The bundle.
        checkpoint: Checkpoint or preset (default: the one that the bundle names).
        base: Folder of the base model, see `dod.checkpoint.load_model`.
        ddpm: Folder of the DDPM, see `dod.checkpoint.load_model`.

    Returns:
        The model.

    Raises:
        BundleError: If the bundle names no model, or if the model has another base, was trained since, or lacks a
            condition of the bundle.
        DODError: If the model cannot be loaded.
    """
    stated = bundle.manifest.model
    source = checkpoint or stated.get("checkpoint") or stated.get("preset")
    if not source:
        raise BundleError(f"{bundle.folder} does not say what it was built from: name it with --checkpoint")
    model = load_model(source, base, ddpm)
    if stated.get("base_sha256") != model.base_sha256:
        raise BundleError(
            f"{bundle.folder} was built on the base {_short(stated.get('base_sha256'))}, but {source} has the base "
            f"{_short(model.base_sha256)}: name the checkpoint it was built from with --checkpoint"
        )
    if stated.get("checkpoint_sha256", trained := hash_model(model)) != trained:
        raise BundleError(
            f"{bundle.folder} was built from the checkpoint {_short(stated['checkpoint_sha256'])}, but {source} is "
            f"{_short(trained)}: build it again, or name the checkpoint it was built from with --checkpoint"
        )
    missing = [name for name in bundle.manifest.conditions if name not in model.prototypes]
    if missing:
        raise BundleError(f"{bundle.folder} has the condition {missing[0]}, but {source} does not: name its checkpoint")
    return model


def modulations_of(model: DOD) -> dict[str, Tensor]:
    """Compute gamma and beta at each prototype with the model itself, independently of a bundle.

    Args:
        model: The model in fp32.

    Returns:
        Modulation of each condition, float32 [N, 2, r].
    """
    return {name: torch.from_numpy(modulation_of(model, name)) for name in model.prototypes}


class TorchModel:
    """PyTorch eager on one device. `auto` is the full model; a named condition has its UNet and encoder merged.

    Args:
        model: The model in fp32. It is left unchanged.
        device: `cpu` or `cuda`.
        precision: `fp32` or `fp16`.
        fp32_modules: Modules that stay in fp32 in fp16 (None: the default ones).
    """

    def __init__(self, model: DOD, device: str, precision: str, fp32_modules: Sequence[str] | None = None) -> None:
        self.backend, self.precision = f"pytorch_{device}", precision
        self.description = f"PyTorch {torch.__version__} eager on {device}, {precision}"
        self._device = torch.device(device)
        own = copy.deepcopy(model) if precision == "fp32" else fp16_copy(model, fp32_modules)
        self._pipeline = TorchPipeline(own.to(self._device), modulations_of(model))

    def merge(self, conditions: Sequence[str]) -> None:
        """Create the merged UNets of these conditions, and drop those of all others.

        Args:
            conditions: Conditions of the model.
        """
        self._pipeline.merge(conditions)

    @torch.inference_mode()
    def run_components(
        self, images: np.ndarray, crops: np.ndarray | None, condition: str, observe: Observer | None = None
    ) -> np.ndarray:
        """Restore padded images, as `dod_runtime.Restorer.run_components` does.

        Args:
            images: float32 [B, 3, H, W] in [-1, 1].
            crops: Native crops, float32 [B, K, 3, R, R]; None where the path takes none.
            condition: `auto`, or a condition that was merged.
            observe: Function that is called with each component and its seconds on the device.

        Returns:
            float32 [B, 3, H, W].
        """
        assert condition == "auto" or condition in self._pipeline.merged, f"{condition} was not merged"
        given = torch.from_numpy(images), None if crops is None else torch.from_numpy(crops)
        values = self._pipeline.restore(*given, condition, lambda component: self._observed(component, observe))
        return values["image"].float().cpu().numpy()

    @contextmanager
    def _observed(self, component: str, observe: Observer | None) -> Iterator[None]:
        elapsed = self._stopwatch() if observe else None
        yield
        if observe and elapsed:
            observe(component, elapsed())

    def _stopwatch(self) -> Callable[[], float]:
        """Start a clock on the device. The returned function waits for all work and returns the seconds since then."""
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
    """Disable TF32, PyTorch's default for convolutions on a GPU, while the reference image is computed."""
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
