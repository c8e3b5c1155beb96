"""Conditional LoRA, equations (1) to (4): layers, injection into a model, and merging for a fixed condition.

The layers extend peft's. During a forward pass they read the modulation from `context`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoRAConv2d
from peft.tuners.lora import Linear as LoRALinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .context import call, current_modulation, modulated

__all__ = [
    "ADAPTER", "CLoRAConv2d", "CLoRALinear", "ConditionalLoRA", "adapted_layers", "base_copy", "conditional_layers",
    "current_modulation", "factors", "inject", "merge", "merged_copy", "merged_forward", "merging", "modulated",
    "number_layers",
]  # fmt: skip

ADAPTER = "default"
"""Name of the only adapter of a layer, peft's default."""
HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
"""Hooks that a base layer takes over when a merge replaces the layer by it. The export casts to fp32 by hooks."""


class ConditionalLoRA:
    """Base class of the conditional layers.

    Attributes:
        index: index i of the layer among the N conditional layers, see `number_layers`.
    """

    index: int = -1
    base_layer: nn.Module
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma_i = modulation[:, i, 0] and beta_i = modulation[:, i, 1] of the current forward pass.

        Args:
            x: tensor whose dtype and number of axes they get, [B, r, H, W] or [B, L, r].

        Raises:
            RuntimeError: there is no modulation, because the call is outside `modulated`.
        """
        affine = call.affine
        if affine is None:
            raise RuntimeError("a conditional LoRA layer ran without a modulation: call it inside `modulated(...)`")
        pieces = affine.convolution if x.ndim == 4 else affine.linear
        return pieces[2 * self.index].to(x.dtype), pieces[2 * self.index + 1].to(x.dtype)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Eq. (3): h = W0 x + s B (gamma * A x + beta).

        Args:
            x: input of the layer, [B, L, d_in] or [B, C_in, H, W].
            *args: further arguments of the base layer.
            **kwargs: further keyword arguments of the base layer.

        Returns:
            h, [B, L, d_out] or [B, C_out, H', W'].
        """
        return self.base_layer(x, *args, **kwargs) + self._branch(x)

    def _branch(self, x: Tensor) -> Tensor:
        """Eq. (3)-(4) without W0 x: s B (gamma * A x + beta)."""
        low = self.lora_A[ADAPTER](x)
        gamma, beta = self.affine(low)
        branch = self.lora_B[ADAPTER](gamma * low + beta)
        return branch if self.scaling[ADAPTER] == 1 else branch * self.scaling[ADAPTER]

    def merge(self, *args: object, **kwargs: object) -> None:
        """Refuse peft's merge, which has no condition to merge for."""
        raise RuntimeError("a conditional LoRA layer merges for a given condition only: use clora.merged_copy")


class CLoRALinear(ConditionalLoRA, LoRALinear):
    """Conditional LoRA of a linear layer. A: [r, d_in]; B: [d_out, r]."""


class CLoRAConv2d(ConditionalLoRA, LoRAConv2d):
    """Conditional LoRA of a convolution. A, with the kernel of the layer: [r, C_in, kh, kw]; B: [C_out, r, 1, 1]."""


def inject(model: nn.Module, targets: Sequence[str], rank: int, alpha: float, conditional: bool) -> None:
    """Add LoRA to linear and convolutional layers, in place. The model's output does not change, because B = 0.

    Args:
        model: model whose own parameters stay frozen.
        targets: suffixes of the names of the layers that get LoRA.
        rank: rank r of A (Kaiming-uniform) and B (zero).
        alpha: the scale of the branch is s = alpha / rank.
        conditional: add conditional LoRA, equation (3), instead of plain LoRA, equation (2).
    """
    values: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets), "bias": "none"}
    config = LoraConfig(**values, lora_dropout=0.0)
    if conditional:
        config._register_custom_module({nn.Linear: CLoRALinear, nn.Conv2d: CLoRAConv2d})
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def number_layers(models: Sequence[nn.Module]) -> int:
    """Assign the indices 0 to N - 1 to the conditional layers of the models, in module order.

    Args:
        models: models whose layers share one modulation.

    Returns:
        The number N of conditional layers.
    """
    count = 0
    for model in models:
        for _, layer in conditional_layers(model):
            layer.index = count
            count += 1
    return count


def conditional_layers(model: nn.Module) -> Iterator[tuple[str, CLoRALinear | CLoRAConv2d]]:
    """Yield the conditional layers of a model in module order.

    Args:
        model: model with injected LoRA.

    Yields:
        Name and layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, (CLoRALinear, CLoRAConv2d)):
            yield name, module


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the layers with LoRA, plain or conditional, in module order.

    Args:
        model: model with injected LoRA.

    Yields:
        Name and layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the trainable low-rank matrices A and B of a layer.

    Args:
        layer: layer with LoRA, plain or conditional.
    """
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return cast(nn.Parameter, a), cast(nn.Parameter, b)


def merge(
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    gamma: Tensor,
    beta: Tensor,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Eq. (3)-(4) for a fixed condition: W' = W + s B diag(gamma) A, b' = b + s B beta. Exact, also at image borders.

    Args:
        weight: W, [out, in] or [out, in, kh, kw].
        bias: b, [out], or None for zero.
        a: A, [r, in] or [r, in, kh, kw].
        b: B, [out, r] or [out, r, 1, 1].
        scale: s = alpha / r.
        gamma: multiplier of A x, [r].
        beta: offset of A x, [r].
        transposed: W is that of a transposed convolution, [in, out, kh, kw], and A is [in, r, kh, kw].

    Returns:
        W' and b', computed in float32.
    """
    if transposed:
        turned, shifted = merge(weight.transpose(0, 1), bias, a.transpose(0, 1), b, scale, gamma, beta)
        return turned.transpose(0, 1).contiguous(), shifted
    a, b = a.float().flatten(1), b.float().flatten(1)
    merged = weight.float() + scale * ((b * gamma.float()) @ a).reshape(weight.shape)
    shift = scale * (b @ beta.float())
    return merged, shift if bias is None else bias.float() + shift


def merged_copy(model: nn.Module, modulation: Tensor | None = None) -> nn.Module:
    """Return a plain copy of a model with each LoRA merged into its base layer, which then has a bias.

    Args:
        model: model with injected LoRA; it does not change.
        modulation: gamma and beta of one condition, [N, 2, r]. None where no layer is conditional.

    Returns:
        The copy. Merging is computed in float32, then cast to the dtype of each weight.

    Raises:
        ValueError: a layer is conditional and there is no modulation.
    """
    model = copy.deepcopy(model)
    for name, layer in list(adapted_layers(model)):
        base = cast(nn.Linear, layer.get_base_layer())
        weight, bias = _merged_values(name, layer, modulation)
        base.weight = nn.Parameter(weight, requires_grad=False)
        base.bias = nn.Parameter(bias, requires_grad=False)
        for hooks in HOOKS:
            getattr(base, hooks).update(getattr(layer, hooks))
        model.set_submodule(name, base)
    return model


@contextmanager
def merging(model: nn.Module, modulation: Tensor | None = None) -> Iterator[None]:
    """Make a model compute what its `merged_copy` computes inside the `with` block, without the memory of a copy.

    Each layer with LoRA merges its weights in every call and drops them afterwards. Its hooks still run. Other threads
    must not call the model meanwhile.

    Args:
        model: model with injected LoRA.
        modulation: as for `merged_copy`.
    """
    layers = list(adapted_layers(model))
    for name, layer in layers:
        cast(Any, layer).forward = partial(merged_forward, name, layer, modulation)
    try:
        yield
    finally:
        for _, layer in layers:
            del cast(Any, layer).forward


def merged_forward(name: str, layer: LoraLayer, modulation: Tensor | None, x: Tensor, *_: object) -> Tensor:
    """Run a layer with LoRA on merged weights.

    Args:
        name: name of the layer, for the error.
        layer: layer with LoRA.
        modulation: as for `merged_copy`.
        x: input of the layer, [B, L, d_in] or [B, C_in, H, W].

    Returns:
        The output of the layer.

    Raises:
        ValueError: the layer is conditional and there is no modulation.
    """
    base = cast(Any, layer.get_base_layer())
    weight, bias = _merged_values(name, layer, modulation)
    if _transposed(layer):
        return F.conv_transpose2d(x, weight, bias, base.stride, base.padding)
    return F.linear(x, weight, bias) if weight.ndim == 2 else base._conv_forward(x, weight, bias)


def _merged_values(name: str, layer: LoraLayer, modulation: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return W' and b' of a layer for a condition, in the dtype of its base weight."""
    base = cast(nn.Linear, layer.get_base_layer())
    a, b = factors(layer)
    gamma, beta = torch.ones(b.shape[1], device=b.device), torch.zeros(b.shape[1], device=b.device)
    if isinstance(layer, ConditionalLoRA):
        if modulation is None:
            raise ValueError(f"layer {name} is conditional: merging it needs a modulation")
        gamma, beta = modulation[layer.index].unbind(0)
    weight, bias = merge(base.weight, base.bias, a, b, layer.scaling[ADAPTER], gamma, beta, _transposed(layer))
    dtype = base.weight.dtype
    return weight.detach().to(dtype), bias.detach().to(dtype)


def _transposed(layer: LoraLayer) -> bool:
    """Return True if the weight of the base layer is [in, out, kh, kw]."""
    return isinstance(layer.get_base_layer(), nn.ConvTranspose2d)


def base_copy(model: nn.Module) -> nn.Module:
    """Return the model as it was before `inject`.

    Args:
        model: model with injected LoRA; it does not change.

    Returns:
        A copy of the structure that shares the frozen weights.
    """
    model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, layer in list(adapted_layers(model)):
        model.set_submodule(name, layer.get_base_layer())
    vars(model).pop("peft_config", None)  # peft's trace on an adapted model
    return model
