"""Low-rank branches joined with their layers: W x + b + B low = [W B] [x; low] + b, equation (3) of the paper.

A separate branch writes all results of its layer once more, and a sum reads both. Where a layer has far more outputs
than inputs, as the first layer of a feed-forward block does, this costs more than concatenating x with `low`, which has
only r values per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from openvino import opset13 as ops

from ...bundle.merge import Allocator

__all__ = ["join"]

WIDER = 2
"""Minimum ratio of outputs to inputs of a layer that gains: joined, x and `low` are copied, and not all results."""


class _Branched(NamedTuple):
    """A linear layer with a low-rank branch.

    Attributes:
        x: inputs `[..., in]`, an output of an OpenVINO node, as are `low` and `bias`.
        low: inner values of the branch `[..., r]`.
        bias: bias `[out]`, None where there is none.
        weight: W `[out, in]`.
        up: B `[out, r]`, multiplied by the scale of the branch.
    """

    x: Any
    low: Any
    bias: Any
    weight: np.ndarray
    up: np.ndarray


def join(model: Any, places: Allocator) -> tuple[str, ...]:
    """Join low-rank branches with the linear layers of a model that gain speed by it.

    Args:
        model: an `openvino.Model`; it is changed in place.
        places: allocator of the arrays for [W B], float32 `[out, in + r]`. They must not change while the model lives.

    Returns:
        Names of the joined layers.
    """
    found = {op.get_friendly_name(): (op, each) for op in model.get_ordered_ops() if (each := _branched(op))}
    shapes = {name: (len(each.up), each.weight.shape[1] + each.up.shape[1]) for name, (_, each) in found.items()}
    stored = places({name: (np.dtype(np.float32), shape) for name, shape in shapes.items()})
    for name, (op, each) in found.items():
        np.concatenate([each.weight, each.up], 1, out=stored[name])
        inputs = ops.concat([each.x, each.low], -1)
        joined = ops.matmul(inputs, ops.constant(stored[name], shared_memory=True), False, True)
        if each.bias is not None:
            joined = ops.add(joined, each.bias)
        for user in op.output(0).get_target_inputs():
            user.replace_source_output(joined.output(0))
        joined.set_friendly_name(name)
    model.validate_nodes_and_infer_types()
    return tuple(found)


def _branched(total: Any) -> _Branched | None:
    """Return the layer and branch whose results a node adds up, None where it adds up anything else."""
    for layer, branch in _terms(total.output(0)):
        base, bias, up, scale = _product(layer), None, _product(branch), np.float32(1)
        for product, constant in _with_constant(layer, "Add"):
            base, bias = _product(product), constant
        for product, constant in _with_constant(branch, "Multiply"):
            up, scale = _product(product), constant.get_node().data
        if base is None or up is None or scale.size != 1:
            continue
        (x, weight), (low, b) = base, up
        outputs, inputs = weight.shape
        if len(b) == outputs >= WIDER * (inputs + b.shape[1]) and _is_low(low, x):
            return _Branched(x, low, bias, weight, b * scale.reshape(()))
    return None


def _is_low(low: Any, x: Any) -> bool:
    """Return True for gamma * A x + beta, the only form of `low` that surely has x's shape except for the last axis."""
    for scaled, _ in _terms(low):
        for down, _ in _terms(scaled, "Multiply"):
            product = _product(down)
            if product and product[0] == x:
                return True
    return False


def _terms(value: Any, kind: str = "Add") -> Iterator[tuple[Any, Any]]:
    """Yield the two inputs of a node of the given kind, in both orders."""
    node = value.get_node()
    if node.get_type_name() == kind:
        first, second = node.input_value(0), node.input_value(1)
        yield from ((first, second), (second, first))


def _with_constant(value: Any, kind: str) -> Iterator[tuple[Any, Any]]:
    """Yield the variable and the constant input of a node of the given kind."""
    return ((one, other) for one, other in _terms(value, kind) if _constant(other))


def _product(value: Any) -> tuple[Any, np.ndarray] | None:
    """Return x and W, float32 `[out, in]`, of a value W x, None where it is anything else."""
    node = value.get_node()
    if node.get_type_name() != "MatMul" or any(node.get_attributes().values()):
        return None
    transpose = node.input_value(1).get_node()
    if transpose.get_type_name() != "Transpose" or not _constant(transpose.input_value(0)):
        return None
    weight, order = transpose.input_value(0).get_node().data, transpose.input_value(1)
    fits = weight.ndim == 2 and weight.dtype == np.float32 and _constant(order)
    return (node.input_value(0), weight) if fits and list(order.get_node().data) == [1, 0] else None


def _constant(value: Any) -> bool:
    return value.get_node().get_type_name() == "Constant"
