"""The pipeline of components behind every restored image: which run for a condition, in which order, on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .backends.base import Backend
from .bundle.bundle import Bundle
from .bundle.schema import GATE
from .errors import UsageError

__all__ = ["DYNAMIC", "MERGED", "Decisions", "Observer", "Pipeline", "path_of"]

Observer: TypeAlias = Callable[[str, float], None]
Decisions: TypeAlias = Mapping[str, Any]
"""What is decided once per image and shared by its tiles: `modulation` on the path `auto`, and where the model has a
gate `share` and `gains`; arrays with the batch first, or what the backend keeps in their place."""

DYNAMIC = ("mfm", "encoder", "unet_dynamic", "decoder")
"""The components of the path `auto`, in order, without the gate."""
MERGED = ("encoder", "unet_merged", "decoder")
"""The components of a condition's path, in order, without the gate."""


def path_of(bundle: Bundle, condition: str, bypass: bool = True) -> tuple[str, ...]:
    """The components that run for a condition, in order. bypass: whether a share of the images may pass the model.

    On `auto` the gate decides that share. A named condition fixes it, and the gate runs only for the kernel that images
    which pass are sharpened with.
    """
    dynamic = condition == "auto"
    path = DYNAMIC if dynamic else MERGED
    if not bundle.manifest.gated or not bypass or not (dynamic or bundle.condition_tensors(condition)["share"][0]):
        return path
    at = path.index("encoder")
    return (*path[:at], GATE, *path[at:])


class Pipeline:
    """The components of a bundle on one backend. Threads may share it.

    bypass: whether a share of the images may pass the model, as the gate or a named condition decides.
    """

    def __init__(self, bundle: Bundle, backend: Backend, bypass: bool = True) -> None:
        self.bundle, self.backend, self.bypass = bundle, backend, bypass
        self._paths: dict[str, tuple[str, ...]] = {}

    def path(self, condition: str) -> tuple[str, ...]:
        """The components that run for a condition, in order."""
        if condition not in self._paths:
            self._paths[condition] = path_of(self.bundle, condition, self.bypass)
        return self._paths[condition]

    def sees_crops(self, condition: str) -> bool:
        """Whether a component of a condition's path takes an image's native crops."""
        return not {"mfm", GATE}.isdisjoint(self.path(condition))

    def decide(self, batch: int, crops: np.ndarray | None, condition: str) -> dict[str, np.ndarray]:
        """Decide what belongs to each of `batch` images as a whole, from its crops: see `Decisions`.

        crops: float32 [B, K, 3, R, R] in [-1, 1], needed where the path has the MFM or the gate. Raises UsageError.
        """
        with self.backend.chain((batch, *(crops.shape[1:] if crops is not None else ()))):
            decisions = self._decide(batch, crops, condition)
            return {name: self.backend.to_numpy(value) for name, value in decisions.items()}

    def _decide(
        self, batch: int, crops: np.ndarray | None, condition: str, observe: Observer | None = None
    ) -> dict[str, Any]:
        """As `decide`, inside a chain; what the backend computes stays where it is."""
        path, manifest = self.path(condition), self.bundle.manifest
        if crops is None and self.sees_crops(condition):
            raise UsageError(f"the condition {condition} needs crops")
        values: dict[str, Any] = {"crops": crops}
        if "mfm" in path:
            values |= self._observed("mfm", values, None, observe)
        if not manifest.gated:
            return {name: values[name] for name in ("modulation",) if name in values}
        values["share"], values["gains"] = np.zeros((batch, 1), np.float32), None
        if condition != "auto":
            fixed = self.bundle.condition_tensors(condition)
            values["condition"] = np.repeat(fixed["condition"][None], batch, axis=0)
            values["share"] += fixed["share"] if self.bypass else 0
        if GATE in path:
            decided = self._observed(GATE, values, None, observe)
            values |= {"gains": decided["gains"]} if condition != "auto" else decided
        else:
            values["gains"] = np.zeros((batch, manifest.filters), np.float32)
        return {name: values[name] for name in ("modulation", "share", "gains") if name in values}

    def run(
        self,
        images: np.ndarray,
        crops: np.ndarray | None = None,
        condition: str = "auto",
        observe: Observer | None = None,
        *,
        decisions: Decisions | None = None,
    ) -> np.ndarray:
        """The pipeline of components on padded images; the step below `restore`, for benchmarks and tests.

        images: float32 [B, 3, H, W] in [-1, 1]. crops: float32 [B, K, 3, R, R], which the MFM and the gate see, or in
        their place decisions: what `decide` made of them. Returns float32 [B, 3, H, W]. `observe` is called with each
        component and its seconds on the device; without it nothing waits between the components.
        """
        with self.backend.chain(images.shape):
            values: dict[str, Any] = {"image": images, "degraded": images}
            values |= self._decide(len(images), crops, condition, observe) if decisions is None else decisions
            for component in MERGED if condition != "auto" else DYNAMIC:
                if component != "mfm":
                    values |= self._observed(component, values, condition, observe)
            return self.backend.to_numpy(values["image"]).astype(np.float32, copy=False)

    def _observed(
        self, component: str, values: Mapping[str, Any], condition: str | None, observe: Observer | None
    ) -> dict[str, Any]:
        inputs = {spec.name: values[spec.name] for spec in self.bundle.manifest.components[component].inputs}
        elapsed = self.backend.stopwatch() if observe else None
        outputs = self.backend.run(component, inputs, None if condition == "auto" else condition)
        if observe and elapsed:
            observe(component, elapsed())
        return outputs
