"""A layer with conditional LoRA as one operator of a trace.

torch.export takes every operator three times through its symbolic shapes, and most of a dynamic UNet's are those of its
low-rank branches. Here it sees one for each layer, which becomes the same ONNX nodes when the graph is translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxscript
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dod.model.clora import ADAPTER, CLoRAConv2d, CLoRALinear, factors

op: Any = onnxscript.opset20
_LIBRARY = torch.library.Library("dod", "DEF")
_LIBRARY.define(
    "conditional(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, Tensor gamma, Tensor beta, float scale, "
    "int[] stride, int[] padding) -> Tensor"
)
CONDITIONAL = torch.ops.dod.conditional.default


def join(module: nn.Module) -> None:
    """Let every layer with conditional LoRA in a module compute by one operator, in place.

    But for transposed convolutions, of which a model has a few, and where something is hooked on a part of the layer.
    """
    for each in module.modules():
        if type(each) in JOINED and not any(_hooked(part) for part in each.modules() if part is not each):
            base: Any = each.base_layer
            if type(base) is nn.Linear or (type(base) is nn.Conv2d and base.groups == 1 and base.dilation == (1, 1)):
                each.__class__ = JOINED[type(each)]  # the same parameters under the same names


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
    """All that a trace asks of the operator: a result of the right shape."""
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
    """Eq. (3) in ONNX nodes, as the exporter writes a layer's six operators."""
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
"""For `torch.onnx.export`'s custom_translation_table."""
