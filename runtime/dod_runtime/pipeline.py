"""The pipeline behind every restored image: the components that run on a condition path, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .backends.base import Backend
from .bundle.bundle import Bundle
from .bundle.schema import GATE
from .condition_path import ConditionPath
from .errors import UsageError

__all__ = ["DYNAMIC", "MERGED", "Decisions", "Observer", "Pipeline", "components_of"]

Observer: TypeAlias = Callable[[str, float], None]
"""Function that receives the name of a component and the seconds that it took on the device."""
Decisions: TypeAlias = Mapping[str, Any]
"""Values that are decided once per image and shared by its tiles: `modulation` `[B, N, 2, r]` on `auto`, and for models
with a gate `share` `[B, 1]` and `gains` `[B, F]`. They are arrays, or values on the device."""

DYNAMIC = ("mfm", "encoder", "unet_dynamic", "decoder")
"""Components of `auto` in order, without the gate."""
MERGED = ("encoder", "unet_merged", "decoder")
"""Components of the path of a named condition in order, without the gate."""


def components_of(bundle: Bundle, path: ConditionPath, bypass: bool = True) -> tuple[str, ...]:
    """Return the components that run on a condition path, in order.

    On `auto` the gate decides which share of an image bypasses the model. A named condition fixes the share, and the
    gate runs only for the kernel that sharpens images that bypass the model.

    Args:
        bundle: the bundle to run.
        path: the condition path.
        bypass: let images bypass the model. Without it the gate never runs.
    """
    components = DYNAMIC if path.dynamic else MERGED
    if not bundle.manifest.gated or not bypass:
        return components
    if path.merged and not bundle.condition_tensors(path.merged)["share"][0]:
        return components
    at = components.index("encoder")
    return (*components[:at], GATE, *components[at:])


class Pipeline:
    """The components of a bundle on one backend. Threads may share it.

    Args:
        bundle: the bundle to run.
        backend: the open backend.
        bypass: let images bypass the model, as the gate or a named condition decides.
    """

    def __init__(self, bundle: Bundle, backend: Backend, bypass: bool = True) -> None:
        self.bundle, self.backend, self.bypass = bundle, backend, bypass
        self._components: dict[ConditionPath, tuple[str, ...]] = {}

    def components(self, path: ConditionPath) -> tuple[str, ...]:
        """Return the components that run on a condition path, in order.

        Args:
            path: the condition path.
        """
        if path not in self._components:
            self._components[path] = components_of(self.bundle, path, self.bypass)
        return self._components[path]

    def needs_crops(self, path: ConditionPath) -> bool:
        """Return True where a component of a condition path takes the native-resolution crops of an image.

        Args:
            path: the condition path.
        """
        return not {"mfm", GATE}.isdisjoint(self.components(path))

    def decide(self, batch_size: int, crops: np.ndarray | None, path: ConditionPath) -> dict[str, np.ndarray]:
        """Return the values that are decided once for each image of a batch; see `Decisions`.

        Args:
            batch_size: number of images B.
            crops: float32 `[B, K, 3, R, R]` in [-1, 1], needed where the path has the MFM or the gate.
            path: the condition path.

        Raises:
            UsageError: the path needs crops and there are none.
        """
        with self.backend.batch((batch_size, *(crops.shape[1:] if crops is not None else ()))):
            decisions = self._decide(batch_size, crops, path)
            return {name: self.backend.to_numpy(value) for name, value in decisions.items()}

    def _decide(
        self, batch_size: int, crops: np.ndarray | None, path: ConditionPath, observe: Observer | None = None
    ) -> dict[str, Any]:
        """Return the decisions, inside a `batch` of the backend; results of components stay on the device."""
        components, manifest = self.components(path), self.bundle.manifest
        if crops is None and self.needs_crops(path):
            raise UsageError(f"the condition {path.name} needs crops")
        values: dict[str, Any] = {"crops": crops}
        if "mfm" in components:
            values |= self._observed("mfm", values, None, observe)
        if not manifest.gated:
            return {name: values[name] for name in ("modulation",) if name in values}
        values["share"], values["gains"] = np.zeros((batch_size, 1), np.float32), None
        if path.merged:
            fixed = self.bundle.condition_tensors(path.merged)
            values["condition"] = np.repeat(fixed["condition"][None], batch_size, axis=0)
            values["share"] += fixed["share"] if self.bypass else 0
        if GATE in components:
            decided = self._observed(GATE, values, None, observe)
            values |= decided if path.dynamic else {"gains": decided["gains"]}
        else:
            values["gains"] = np.zeros((batch_size, manifest.filters), np.float32)
        return {name: values[name] for name in ("modulation", "share", "gains") if name in values}

    def run(
        self,
        images: np.ndarray,
        crops: np.ndarray | None,
        path: ConditionPath,
        observe: Observer | None = None,
        *,
        decisions: Decisions | None = None,
    ) -> np.ndarray:
        """Run all components of a condition path on padded images.

        Args:
            images: float32 `[B, 3, H, W]` in [-1, 1].
            crops: float32 `[B, K, 3, R, R]` in [-1, 1] for the MFM and the gate; unused where `decisions` are given.
            path: the condition path.
            observe: receives the seconds of each component. Only then the components wait for each other.
            decisions: result of `decide`, by default decided here.

        Returns:
            The restored images, float32 `[B, 3, H, W]`.

        Raises:
            UsageError: the path needs crops and there are neither crops nor decisions.
        """
        with self.backend.batch(images.shape):
            values: dict[str, Any] = {"image": images, "degraded": images}
            values |= self._decide(len(images), crops, path, observe) if decisions is None else decisions
            for component in DYNAMIC if path.dynamic else MERGED:
                if component != "mfm":
                    values |= self._observed(component, values, path.merged, observe)
            return self.backend.to_numpy(values["image"]).astype(np.float32, copy=False)

    def _observed(
        self, component: str, values: Mapping[str, Any], condition: str | None, observe: Observer | None
    ) -> dict[str, Any]:
        inputs = {spec.name: values[spec.name] for spec in self.bundle.manifest.components[component].inputs}
        elapsed = self.backend.stopwatch() if observe else None
        outputs = self.backend.run(component, inputs, condition)
        if observe and elapsed:
            observe(component, elapsed())
        return outputs
