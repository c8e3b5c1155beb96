"""Low-rank branches in one product with their layers: W x + b + B low is [W B] [x low] + b, equation (3).

A branch by itself writes all results of its layer once more, and a sum reads both. Where a layer has far more results
than inputs, as the first one of a feed-forward block, that costs more than laying `low`, a few numbers, beside x does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from openvino import opset13 as ops

from ...bundle.merge import Allocator

__all__ = ["join"]

WIDER = 2
"""Results for each input, from which a layer gains: x and `low` are read and written, instead of all results twice."""


class _Branched(NamedTuple):
    """A linear layer with a branch, in OpenVINO's outputs of nodes: x [..., in], low [..., r], bias [out] or none.
    weight: W [out, in]; up: B [out, r], times what scales the branch."""

    x: Any
    low: Any
    bias: Any
    weight: np.ndarray
    up: np.ndarray


def join(model: Any, places: Allocator) -> tuple[str, ...]:
    """Joins the branches of the linear layers of an `openvino.Model` that gain by it, and returns the layers' names.

    places: gives the arrays for [W B], float32 [out, in + r], which must stay as they are while the model lives.
    """
    found = {op.get_friendly_name(): (op, each) for op in model.get_ordered_ops() if (each := _branched(op))}
    shapes = {name: (len(each.up), each.weight.shape[1] + each.up.shape[1]) for name, (_, each) in found.items()}
    stored = places({name: (np.dtype(np.float32), shape) for name, shape in shapes.items()})
    for name, (op, each) in found.items():
        np.concatenate([each.weight, each.up], 1, out=stored[name])
        inputs = ops.concat([each.x, each.low], -1)
        instead = ops.matmul(inputs, ops.constant(stored[name], shared_memory=True), False, True)
        if each.bias is not None:
            instead = ops.add(instead, each.bias)
        for user in op.output(0).get_target_inputs():
            user.replace_source_output(instead.output(0))
        instead.set_friendly_name(name)
    model.validate_nodes_and_infer_types()
    return tuple(found)


def _branched(total: Any) -> _Branched | None:
    """The layer whose results, and its branch's, a node adds up; None where it is something else."""
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
    """Whether `low` is gamma * A x + beta, which alone is sure to have the shape of x but for the last axis."""
    for scaled, _ in _terms(low):
        for down, _ in _terms(scaled, "Multiply"):
            product = _product(down)
            if product and product[0] == x:
                return True
    return False


def _terms(value: Any, kind: str = "Add") -> Iterator[tuple[Any, Any]]:
    """What a node of a kind takes, in both orders."""
    node = value.get_node()
    if node.get_type_name() == kind:
        first, second = node.input_value(0), node.input_value(1)
        yield from ((first, second), (second, first))


def _with_constant(value: Any, kind: str) -> Iterator[tuple[Any, Any]]:
    """Of the two inputs of a node of a kind the one that varies, and then the constant."""
    return ((one, other) for one, other in _terms(value, kind) if _constant(other))


def _product(value: Any) -> tuple[Any, np.ndarray] | None:
    """x and W [out, in], float32, of a value W x; None where it is something else."""
    node = value.get_node()
    if node.get_type_name() != "MatMul" or any(node.get_attributes().values()):
        return None
    turned = node.input_value(1).get_node()
    if turned.get_type_name() != "Transpose" or not _constant(turned.input_value(0)):
        return None
    weight = turned.input_value(0).get_node().data
    fits = weight.ndim == 2 and weight.dtype == np.float32 and _constant(turned.input_value(1))
    return (node.input_value(0), weight) if fits and list(turned.input_value(1).get_node().data) == [1, 0] else None


def _constant(value: Any) -> bool:
    return value.get_node().get_type_name() == "Constant"
