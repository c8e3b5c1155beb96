"""Conditional LoRA (equations (1) to (5)) on peft's extension points, its injection, and the mathematics of merging.

The modulation of a call is held by its thread for the length of the UNet's forward pass: that is re-entrant, safe with
threads, and traceable by torch.export and by torch.compile with fullgraph=True (which refuses a context variable), and
nothing is left on a module.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoRAConv2d
from peft.tuners.lora import Linear as LoRALinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ADAPTER = "default"
HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
"""What is hooked on a layer (export keeps some in float32) goes with it where a merge replaces it by its base."""


@dataclass(frozen=True)
class _Affine:
    """One modulation, cut once for all layers in the shape each kind needs: layer i's gamma at 2 i, beta at 2 i + 1."""

    modulation: Tensor
    linear: tuple[Tensor, ...]  # [B, 1, r] each
    convolution: tuple[Tensor, ...]  # [B, r, 1, 1] each


class _Call(threading.local):
    """The forward pass in progress on this thread."""

    affine: _Affine | None = None


_call = _Call()


@contextmanager
def modulated(modulation: Tensor | None) -> Iterator[None]:
    """Make `modulation` [B, N, 2, r] the one that conditional layers read inside the block."""
    affine = None
    if modulation is not None:
        flat, rank = modulation.flatten(1), modulation.shape[-1]
        affine = _Affine(modulation, flat[:, None].split(rank, dim=2), flat[:, :, None, None].split(rank, dim=1))
    before, _call.affine = _call.affine, affine
    try:
        yield
    finally:
        _call.affine = before


def current_modulation() -> Tensor | None:
    """The modulation [B, N, 2, r] of the call in progress; None outside `modulated`."""
    return None if _call.affine is None else _call.affine.modulation


class ConditionalLoRA:
    """What the conditional layers share. `index` is the layer's place among the N conditional layers."""

    index: int = -1
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """gamma = modulation[:, i, 0] and beta = [:, i, 1] of the call in progress, in the dtype of x or A x and in the
        shape that its number of axes needs. RuntimeError outside `modulated`."""
        affine = _call.affine
        if affine is None:
            raise RuntimeError("a conditional LoRA layer ran without a modulation: call it inside `modulated(...)`")
        pieces = affine.convolution if x.ndim == 4 else affine.linear
        return pieces[2 * self.index].to(x.dtype), pieces[2 * self.index + 1].to(x.dtype)

    def _branch(self, x: Tensor) -> Tensor:
        """Eq. (3)-(4) without W0: s B(gamma * A x + beta)."""
        low = self.lora_A[ADAPTER](x)
        gamma, beta = self.affine(low)
        branch = self.lora_B[ADAPTER](gamma * low + beta)
        return branch if self.scaling[ADAPTER] == 1 else branch * self.scaling[ADAPTER]

    def merge(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("a conditional LoRA layer merges for a given condition only: use clora.merged_copy")


class CLoRALinear(ConditionalLoRA, LoRALinear):
    """Eq. (3): h = W0 x + s B(gamma * A x + beta). x: [B, L, d_in]."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.base_layer(x, *args, **kwargs) + self._branch(x)


class CLoRAConv2d(ConditionalLoRA, LoRAConv2d):
    """Eq. (3) for a convolution: A carries the kernel (r x C_in x kh x kw), B is 1 x 1. x: [B, C_in, H, W]."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.base_layer(x, *args, **kwargs) + self._branch(x)


def inject(model: nn.Module, targets: Sequence[str], rank: int, alpha: float, conditional: bool) -> None:
    """Put LoRA (plain, or conditional) on every linear and convolutional layer whose name ends in a target, in place.

    A is Kaiming-uniform and B zero, so the model computes what it did before. The base stays frozen.
    """
    values: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets), "bias": "none"}
    config = LoraConfig(**values, lora_dropout=0.0)
    if conditional:
        config._register_custom_module({nn.Linear: CLoRALinear, nn.Conv2d: CLoRAConv2d})
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def number_layers(models: Sequence[nn.Module]) -> int:
    """Give the conditional layers of the models, in module order, their indices 0..N-1. Returns N."""
    count = 0
    for model in models:
        for _, layer in conditional_layers(model):
            layer.index = count
            count += 1
    return count


def conditional_layers(model: nn.Module) -> Iterator[tuple[str, CLoRALinear | CLoRAConv2d]]:
    """(name, layer) of each conditional layer, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, (CLoRALinear, CLoRAConv2d)):
            yield name, module


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(name, layer) of each layer with LoRA, plain or conditional, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """The trainable A and B of a layer with LoRA."""
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
    """Eq. (3)-(4) for a fixed condition, exact, borders included: W' = W + s B diag(gamma) A, b' = b + s B beta.

    weight: [out, in] or [out, in, kh, kw]; a: [r, in] or [r, in, kh, kw]; b: [out, r] or [out, r, 1, 1];
    gamma, beta: [r]; transposed: a transposed convolution's weight [in, out, kh, kw] and a [in, r, kh, kw].
    Computed in float32; returns float32 (W', b').
    """
    if transposed:
        turned, shifted = merge(weight.transpose(0, 1), bias, a.transpose(0, 1), b, scale, gamma, beta)
        return turned.transpose(0, 1).contiguous(), shifted
    a, b = a.float().flatten(1), b.float().flatten(1)
    merged = weight.float() + scale * ((b * gamma.float()) @ a).reshape(weight.shape)
    shift = scale * (b @ beta.float())
    return merged, shift if bias is None else bias.float() + shift


def merged_copy(model: nn.Module, modulation: Tensor | None = None) -> nn.Module:
    """A plain copy of the model: every LoRA merged, in float32, into its base layer, which always gets a bias.

    modulation: [N, 2, r] of the condition (None where no layer is conditional). The dtype of each weight is kept.
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
    """Inside the block the model computes what its `merged_copy` does, without a copy: each layer with LoRA merges its
    weights whenever it is called, and forgets them. Hooks on it stay in force. Not for two threads at once."""
    layers = list(adapted_layers(model))
    for name, layer in layers:
        cast(Any, layer).forward = partial(merged_forward, name, layer, modulation)
    try:
        yield
    finally:
        for _, layer in layers:
            del cast(Any, layer).forward


def merged_forward(name: str, layer: LoraLayer, modulation: Tensor | None, x: Tensor, *_: object) -> Tensor:
    """What a layer with LoRA, of this name, gives for x with its weights merged at a condition, see `merged_copy`."""
    base = cast(Any, layer.get_base_layer())
    weight, bias = _merged_values(name, layer, modulation)
    if _transposed(layer):
        return F.conv_transpose2d(x, weight, bias, base.stride, base.padding)
    return F.linear(x, weight, bias) if weight.ndim == 2 else base._conv_forward(x, weight, bias)


def _merged_values(name: str, layer: LoraLayer, modulation: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer's (W', b') at a condition, each in the dtype of its base's weight."""
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
    """Whether the base layer's weight begins with its inputs."""
    return isinstance(layer.get_base_layer(), nn.ConvTranspose2d)


def base_copy(model: nn.Module) -> nn.Module:
    """The model as it was before `inject`: its structure copied, its frozen weights shared."""
    model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, layer in list(adapted_layers(model)):
        model.set_submodule(name, layer.get_base_layer())
    vars(model).pop("peft_config", None)  # what peft leaves on a model that it has adapted
    return model
