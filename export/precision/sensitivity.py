"""Sensitivity to fp16: the error that each component and each block adds to the restored image."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dod.model.adm import AttentionBlock, ResBlock
from dod.model.detail import DetailEnhancement
from dod.model.dod import DOD
from dod.model.modulation import ModulationNetwork
from export.graphs.fp16 import COMPONENTS, cast_to, is_inside
from export.precision.calibration import Quality, measure_quality, restore
from export.precision.ranges import CalibrationReference

__all__ = ["candidates", "component_quality", "rank"]

BLOCKS = (
    *(ResnetBlock2D, Transformer2DModel, Attention, Upsample2D, Downsample2D, TimestepEmbedding, LoraLayer),
    *(ResBlock, AttentionBlock, DetailEnhancement, ModulationNetwork),
)
"""Classes of the blocks that are kept in fp32 as a whole."""


def component_quality(model: DOD, fp16: DOD, reference: CalibrationReference) -> dict[str, Quality]:
    """Measure the pipeline with one component in fp16 and all others in fp32, for each component.

    Args:
        model: The model in fp32.
        fp16: Its fp16 copy.
        reference: The fp32 pipeline on an image.

    Returns:
        Quality by component.
    """
    models, reuse = dict.fromkeys(COMPONENTS, model), {}
    mixed = {name: restore({**models, name: fp16}, reference.image, reuse=reuse) for name in COMPONENTS}
    return {name: measure_quality(output, reference.output) for name, output in mixed.items()}


def candidates(model: DOD) -> list[str]:
    """Return the modules that a search may keep in fp32.

    Args:
        model: The model.

    Returns:
        Names of blocks (residual, attention, sampling, detail) and of layers that are in no block.
    """
    found: list[str] = []

    def descend(name: str, module: nn.Module) -> None:
        if isinstance(module, BLOCKS) or (not list(module.children()) and list(module.parameters())):
            found.append(name)
            return
        for child, part in module.named_children():
            descend(f"{name}.{child}", part)

    for component in COMPONENTS:
        descend(component, model.get_submodule(component))
    return found


def rank(
    model: DOD, fp16: DOD, reference: CalibrationReference, fp32_modules: Collection[str]
) -> tuple[list[str], dict[str, float]]:
    """Rank all candidates that are not in fp32 yet by the error that they add to the image.

    The ranking is an estimate from six runs: the error of each component at the image is divided among its blocks in
    proportion to the relative error of each block on the fp32 model's inputs.

    Args:
        model: The model in fp32.
        fp16: Its fp16 copy.
        reference: The fp32 pipeline on an image.
        fp32_modules: Modules that the copy keeps in fp32.

    Returns:
        Names in descending order, and the mean squared error at the image of each component alone in fp16.
    """
    cost = {name: 10 ** (-each.psnr_db / 10) for name, each in component_quality(model, fp16, reference).items()}
    errors = _local_errors(model, fp16, reference, fp32_modules)
    totals = {part: sum(e for n, e in errors.items() if is_inside(n, {part})) or 1.0 for part in COMPONENTS}
    parts = {name: name.partition(".")[0] for name in errors}
    return sorted(errors, key=lambda name: -cost[parts[name]] * errors[name] / totals[parts[name]]), cost


def _local_errors(
    model: DOD, fp16: DOD, reference: CalibrationReference, fp32_modules: Collection[str]
) -> dict[str, float]:
    """Return the relative error power of each candidate on the fp32 model's inputs.

    Both models run side by side in one pass, so that only the errors are kept.
    """
    errors: dict[str, float] = {}
    hooks = []

    def comparing(name: str) -> Callable[..., None]:
        twin = fp16.get_submodule(name)

        def compare(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            given, named = cast_to(args, torch.float16), cast_to(kwargs, torch.float16)
            expected, found = _first(output).double(), _first(twin(*given, **named)).double()  # type: ignore[misc]
            power = float(expected.square().sum()) or 1.0
            errors[name] = max(errors.get(name, 0.0), float((found - expected).square().sum()) / power)

        return compare

    for name in candidates(model):
        if is_inside(name, fp32_modules):
            continue
        hooks.append(model.get_submodule(name).register_forward_hook(comparing(name), with_kwargs=True))
    try:
        restore(model, reference.image)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}


def _first(output: object) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output
