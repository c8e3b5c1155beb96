"""The parts of the model that become graphs, each with example inputs, dynamic axes and the names of both."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from dod.model import clora
from dod.model.dod import DOD, OneStepUNet
from dod_runtime.bundle.schema import GATE
from export.graphs.simplify import simplify_merged

__all__ = ["GRAPHS", "TRACE_BATCH", "TRACE_SIZE", "GraphPlan", "graphs_of", "meta_copy", "neutral_modulation", "plan"]

GRAPHS = {
    "mfm": "mfm",
    "gate": "gate",
    "encoder": "encoder",
    "unet_dynamic": "unet",
    "unet_merged": "unet",
    "decoder": "decoder",
}
"""Name of each graph and of its weights file, without the suffix. A model has those that `graphs_of` returns."""

TRACE_BATCH = 2
"""Images in the example inputs of a trace."""
TRACE_SIZE = (3, 2)
"""Height and width of the example image, in size multiples. They differ from each other and from the batch, so that the
exporter cannot mistake one axis for another."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class GraphPlan:
    """A component that is ready to be traced.

    Attributes:
        module: The component, with the interface of its graph.
        inputs: Example tensors by name.
        axes: Dynamic axes of each input: axis -> label, for example `{0: "batch", 2: "height/8"}`.
        outputs: Names of the outputs.
        multiple: Number that the sides of an image are multiples of, in pixels.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    multiple: int


class _Wrapper(nn.Module):
    """Base of the modules that give a component the flat interface of its graph."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


class _FlatEncoder(_Wrapper):
    """The encoder with its latent and skips as one flat tuple."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        latent, skips = self.part(image)
        return (latent, *skips)


class _FlatDecoder(_Wrapper):
    """The decoder with its skips as separate inputs."""

    def forward(self, latent_restored: Tensor, **skips: Tensor) -> Tensor:
        return self.part(latent_restored, list(skips.values()))


class _PostprocessedDecoder(_FlatDecoder):
    """The decoder followed by the post-processing, whose decisions are inputs."""

    def __init__(self, part: nn.Module, post: nn.Module) -> None:
        super().__init__(part)
        self.post = post

    def forward(  # type: ignore[override]
        self, latent_restored: Tensor, degraded: Tensor, share: Tensor, gains: Tensor, **skips: Tensor
    ) -> Tensor:
        return self.post(super().forward(latent_restored, **skips), degraded, share, gains)


def graphs_of(model: DOD) -> dict[str, str]:
    """Return the graphs of a model and their weights files.

    Args:
        model: The model. Only a model with post-processing has a gate.

    Returns:
        The entries of `GRAPHS` that exist for this model.
    """
    return {graph: file for graph, file in GRAPHS.items() if graph != GATE or model.gate is not None}


def plan(
    model: DOD, graph: str, batch: int = TRACE_BATCH, size: tuple[int, int] | None = None, folded: bool = True
) -> GraphPlan:
    """Prepare one graph of the model for a trace.

    Args:
        model: The model. Example inputs lie on its device, which may be meta.
        graph: One of `graphs_of(model)`.
        batch: Images in the example inputs.
        size: Height and width of the example image in pixels (default: `TRACE_SIZE` in size multiples).
        folded: Simplify the merged UNet with `simplify_merged`. It is merged with the neutral modulation in any case.

    Returns:
        The component with its example inputs, dynamic axes and output names.
    """
    height, width = size or (n * model.preset.size_multiple for n in TRACE_SIZE)
    with torch.device(model.unet.prompt.device), torch.no_grad():
        return _plan(model, graph, batch, height, width, folded)


def _plan(model: DOD, graph: str, batch: int, height: int, width: int, folded: bool) -> GraphPlan:
    preset = model.preset
    multiple, factor = preset.size_multiple, preset.vae_factor
    image = torch.rand(batch, 3, height, width) * 2 - 1
    crops, size = preset.mfm.crops, preset.mfm.crop_size
    full = {0: "batch", 2: "height", 3: "width"}
    small = {0: "batch", 2: f"height/{factor}", 3: f"width/{factor}"}
    latent = torch.randn(batch, preset.base.vae.latent_channels, height // factor, width // factor)
    modulation = torch.randn(batch, len(model.layers), 2, preset.lora.rank)
    if graph == "mfm":
        example = torch.rand(batch, crops, 3, size, size) * 2 - 1
        return GraphPlan(model.mfm, {"crops": example}, {"crops": {0: "batch"}}, ("condition", "modulation"), multiple)
    if graph == GATE:
        assert model.gate is not None
        inputs = {"crops": torch.rand(batch, crops, 3, size, size) * 2 - 1}
        inputs["condition"] = torch.randn(batch, cast(int, model.mfm.h_space.channels))
        axes = {name: {0: "batch"} for name in inputs}
        return GraphPlan(model.gate, inputs, axes, ("share", "gains"), multiple)
    if graph == "encoder":
        module = _FlatEncoder(clora.merged_copy(model.encoder))
        names = tuple(f"skip_{i}" for i in range(len(preset.base.vae.block_out_channels)))
        return GraphPlan(module, {"image": image}, {"image": full}, ("latent", *names), multiple)
    if graph == "unet_dynamic":
        axes = {"latent": small, "modulation": {0: "batch"}}
        return GraphPlan(model.unet, {"latent": latent, "modulation": modulation}, axes, ("latent_restored",), multiple)
    if graph == "unet_merged":
        module = cast(OneStepUNet, clora.merged_copy(model.unet, neutral_modulation(model)))
        if folded:
            simplify_merged(module)
        return GraphPlan(module, {"latent": latent}, {"latent": small}, ("latent_restored",), multiple)
    skips = model.encoder(image)[1]
    inputs, axes = {"latent_restored": latent}, {"latent_restored": small}
    for i, skip in enumerate(skips):
        scale = height // skip.shape[2]
        inputs[f"skip_{i}"] = skip
        axes[f"skip_{i}"] = full if scale == 1 else {0: "batch", 2: f"height/{scale}", 3: f"width/{scale}"}
    if model.postprocess is None:
        return GraphPlan(_FlatDecoder(model.decoder), inputs, axes, ("image",), multiple)
    decisions = {
        "share": torch.rand(batch, 1),
        "gains": torch.randn(batch, cast(nn.Conv2d, model.postprocess.filters).out_channels),
    }
    inputs = {**inputs, "degraded": image, **decisions}
    axes = {**axes, "degraded": full, **{name: {0: "batch"} for name in decisions}}
    return GraphPlan(_PostprocessedDecoder(model.decoder, model.postprocess), inputs, axes, ("image",), multiple)


def neutral_modulation(model: DOD) -> Tensor:
    """Return the modulation that leaves the base UNet unchanged when it is merged.

    Args:
        model: The model.

    Returns:
        gamma = beta = 0: float32 [N, 2, r].
    """
    return torch.zeros(len(model.layers), 2, model.preset.lora.rank)


def meta_copy(model: Module) -> Module:
    """Copy a model, or a part of one, without storage.

    Args:
        model: Any module.

    Returns:
        A copy on the meta device. It has everything that a trace needs, whatever the model's size.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): _without_values(tensor) for tensor in tensors})


def _without_values(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
