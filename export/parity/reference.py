"""PyTorch models behind the interface of a bundle's components: the reference of parity checks and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dod.model import clora
from dod.model.dod import DOD
from dod_runtime.bundle.schema import GATE
from dod_runtime.pipeline import DYNAMIC, MERGED
from export.graphs.condition_files import modulation_of
from export.graphs.fp16 import COMPONENTS, SummedInFloat32
from export.parity.runs import Values
from export.parity.sequence import run_in_order

__all__ = ["DECODED", "TorchPipeline", "from_numpy"]

DECODED = "decoded"
"""Name of the decoder's own image, before the post-processing. It is not an output of a bundle's component."""


class TorchPipeline:
    """PyTorch models that run component by component, under the names of a bundle's components.

    Args:
        model: One model for all components, or a model for each of `export.graphs.fp16.COMPONENTS`: a pipeline in
            mixed precision. All lie on one device. The decoder's model also provides gate and post-processing.
        modulations: Modulation of each condition, float32 [N, 2, r], for merged paths (default: computed by the
            UNet's model).
    """

    def __init__(self, model: DOD | Mapping[str, DOD], modulations: Mapping[str, Tensor] | None = None) -> None:
        self._models: Mapping[str, DOD] = dict.fromkeys(COMPONENTS, model) if isinstance(model, DOD) else model
        self._modulations = modulations
        self._merged: dict[str, nn.Module] = {}
        self._merged_encoder: nn.Module | None = None
        decoder = self._models["decoder"].decoder
        self._skip_dtype = next((p.dtype for p in decoder.parameters() if p.dtype != torch.float32), torch.float32)
        self._device = self._models["unet"].unet.prompt.device

    def path(self, condition: str) -> tuple[str, ...]:
        """Return the components that run for a condition.

        Args:
            condition: `auto` or a condition.

        Returns:
            Components in order, as `dod_runtime.pipeline.components_of` orders those of a bundle.
        """
        path = DYNAMIC if condition == "auto" else MERGED
        model = self._models["decoder"]
        if model.gate is None or model.postprocess is None or not (condition == "auto" or model.share(condition)):
            return path
        at = path.index("encoder")
        return (*path[:at], GATE, *path[at:])

    @property
    def merged(self) -> tuple[str, ...]:
        """Conditions whose merged UNets are kept."""
        return tuple(self._merged)

    def merge(self, conditions: Sequence[str]) -> None:
        """Keep merged copies of the UNet for these conditions, and of the encoder; drop all other copies.

        A merged path whose UNet is not kept merges the weights layer by layer, in every call.

        Args:
            conditions: Conditions of the model.
        """
        self._merged = {name: unet for name, unet in self._merged.items() if name in conditions}
        for name in conditions:
            if name not in self._merged:
                self._merged[name] = clora.merged_copy(self._models["unet"].unet, self._modulation(name))
        if conditions and self._merged_encoder is None:
            self._merged_encoder = clora.merged_copy(self._models["encoder"].encoder)

    @torch.no_grad()
    def run(self, component: str, inputs: Values, condition: str | None = None) -> dict[str, np.ndarray]:
        """Run one component on arrays. 16-bit sums are taken in float32, as on a GPU.

        Args:
            component: Name of the component.
            inputs: Its inputs by name.
            condition: Condition of a merged path, None on `auto`.

        Returns:
            Its outputs by name.
        """
        with SummedInFloat32():
            outputs = self._run(component, {name: from_numpy(value) for name, value in inputs.items()}, condition)
        return {name: value.numpy() for name, value in outputs.items() if name != DECODED}

    @torch.no_grad()
    def restore(
        self,
        image: Tensor,
        crops: Tensor | None,
        condition: str = "auto",
        around: Callable[[str], AbstractContextManager[Any]] = lambda component: nullcontext(),
        reuse: dict[tuple[str, int], dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Restore images end to end.

        Args:
            image: Padded images [B, 3, H, W], float32 in [-1, 1].
            crops: Native crops [B, K, 3, R, R], float32 in [-1, 1]; None where no component of the path takes any.
            condition: `auto` or a condition.
            around: Function from the name of a component to a context that it runs in, for example a timer.
            reuse: Outputs of the components that take the image itself, by component and model. Missing ones are
                added, for other pipelines that restore the same image with some of the same models.

        Returns:
            All values along the pipeline by name: the outputs of the components, `degraded` and `crops`, and `decoded`,
            the decoder's image [B, 3, H, W] before the post-processing. `image` is the restored image.
        """
        given = {"image": image, "degraded": image} | ({} if crops is None else {"crops": crops})
        path = self.path(condition)
        if condition != "auto" and GATE in path:  # the condition fixes the share; the gate runs for its gains
            model = self._models["decoder"]
            given["condition"] = model.prototypes[condition][None].expand(len(image), -1)
            given["share"] = torch.full((len(image), 1), model.share(condition), device=self._device)
        reuse = {} if reuse is None else reuse

        def run_component(component: str, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            key = component, id(self._models.get(component))
            if key in reuse:
                return reuse[key]
            with around(component):
                outputs = self._run(component, values, None if condition == "auto" else condition)
            if component in ("mfm", "encoder"):
                reuse[key] = outputs
            return outputs

        return run_in_order(path, given, run_component)

    def _run(self, component: str, values: Mapping[str, Tensor], condition: str | None) -> dict[str, Tensor]:
        if component == "mfm":
            found, modulation = self._models["mfm"].mfm(self._input(values, "crops"))
            return {"condition": found, "modulation": modulation}
        if component == GATE:
            gate = cast(nn.Module, self._models["decoder"].gate)
            share, gains = gate(self._input(values, "crops"), self._input(values, "condition").float())
            return {"share": share, "gains": gains}
        if component == "encoder":
            merged = None if condition is None else self._merged_encoder
            encoder = self._models["encoder"].encoder if merged is None else merged
            latent, skips = encoder(self._input(values, "image"))
            return {"latent": latent} | {f"skip_{i}": skip for i, skip in enumerate(skips)}
        if component == "decoder":
            return self._decode(values)
        unet, latent = self._models["unet"].unet, self._input(values, "latent")
        if component == "unet_dynamic":
            return {"latent_restored": unet(latent, self._input(values, "modulation"))}
        assert condition is not None
        if condition in self._merged:
            return {"latent_restored": self._merged[condition](latent)}
        with clora.merging(unet, self._modulation(condition)):
            return {"latent_restored": unet(latent)}

    def _decode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model, names = self._models["decoder"], sorted(name for name in values if name.startswith("skip_"))
        skips = [self._input(values, name).to(self._skip_dtype) for name in names]
        image = decoded = model.decoder(self._input(values, "latent_restored"), skips).float()
        if model.postprocess is not None and "share" in values:
            image = model.postprocess(decoded, *(self._input(values, name) for name in ("degraded", "share", "gains")))
        return {"image": image, DECODED: decoded}

    def _input(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        return values[name].to(self._device)

    def _modulation(self, condition: str) -> Tensor:
        if self._modulations is not None:
            return self._modulations[condition].to(self._device)
        return torch.from_numpy(modulation_of(self._models["unet"], condition))


def from_numpy(value: np.ndarray) -> Tensor:
    """Convert an array to a tensor. Read-only arrays, for example mapped ones, are copied: PyTorch warns about them.

    Args:
        value: The array.

    Returns:
        A tensor of the same values.
    """
    return torch.from_numpy(np.require(value, requirements=("C", "W")))
