"""A layer with conditional LoRA as a single operator of a trace, which makes tracing faster.

torch.export propagates symbolic shapes through every operator three times, and most operators of a dynamic UNet belong
to its low-rank branches. With this module it sees one operator per layer, which is translated to the usual ONNX nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxscript
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dod.model.clora import ADAPTER, CLoRAConv2d, CLoRALinear, factors

__all__ = ["CONDITIONAL", "TRANSLATIONS", "join"]

op: Any = onnxscript.opset20
_LIBRARY = torch.library.Library("dod", "DEF")
_LIBRARY.define(
    "conditional(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, Tensor gamma, Tensor beta, float scale, "
    "int[] stride, int[] padding) -> Tensor"
)
CONDITIONAL = torch.ops.dod.conditional.default
"""The operator: base layer and low-rank branch of one conditional layer, Eq. (3)."""


def join(module: nn.Module) -> None:
    """Make every layer with conditional LoRA compute with the single operator, in place.

    Transposed convolutions keep their operators (a model has only a few of them), and so do layers whose parts have
    hooks.

    Args:
        module: The module. Its parameters and their names stay.
    """
    for each in module.modules():
        if type(each) in JOINED and not any(_hooked(part) for part in each.modules() if part is not each):
            base: Any = each.base_layer
            if type(base) is nn.Linear or (type(base) is nn.Conv2d and base.groups == 1 and base.dilation == (1, 1)):
                each.__class__ = JOINED[type(each)]  # a change of class keeps the parameters and their names


class _JoinedLinear(CLoRALinear):
    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        base: Any = self.base_layer
        gamma, beta = self.affine(x)
        scale = self.scaling[ADAPTER]
        return CONDITIONAL(x, base.weight, base.bias, *factors(self), gamma, beta, scale, [], [])


class _JoinedConv2d(CLoRAConv2d):
    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        base: Any = self.base_layer
        gamma, beta = self.affine(x)
        scale, sides = self.scaling[ADAPTER], (list(base.stride), list(base.padding))
        return CONDITIONAL(x, base.weight, base.bias, *factors(self), gamma, beta, scale, *sides)


JOINED = {CLoRALinear: _JoinedLinear, CLoRAConv2d: _JoinedConv2d}


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _shaped(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale: float,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Return a tensor of the result's shape, which is all that a trace needs."""
    if weight.ndim == 2:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    return F.conv2d(x, weight, bias, stride, padding)


torch.library.register_fake("dod::conditional", _shaped, lib=_LIBRARY)
_LIBRARY.impl("conditional", _shaped, "Meta")


def _written(
    x: Any,
    weight: Any,
    bias: Any,
    a: Any,
    b: Any,
    gamma: Any,
    beta: Any,
    scale: float,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Any:
    """Write Eq. (3) as the ONNX nodes that the exporter writes for the six operators of a layer."""
    sides = {"strides": list(stride), "pads": [*padding, *padding]}

    def layer(x: Any, weight: Any, bias: Any = None, **sides: Any) -> Any:
        if len(weight.shape) == 2:
            product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
            return product if bias is None else op.Add(product, bias)
        return op.Conv(x, weight, bias, **sides)

    low = op.Add(op.Mul(gamma, layer(x, a, **sides)), beta)
    branch = layer(low, b)
    if scale != 1:
        branch = op.Mul(branch, op.CastLike(op.Constant(value_float=scale), branch))
    return op.Add(layer(x, weight, bias, **sides), branch)


TRANSLATIONS = {CONDITIONAL: _written}
"""Argument `custom_translation_table` of `torch.onnx.export`."""
