"""Winograd's minimal filtering F(4 x 4, 3 x 3) in operators of OpenVINO: a quarter of a convolution's products.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4. A tile of 4 x 4 results is
A' [sum over the inputs of (G g G') * (B' d B)] A, where d are the 6 x 6 values that it depends on and g is the 3 x 3
kernel. For each of the 36 products of a tile the sum is one matrix product, which takes nearly all of the time. In
float32 the results differ from the direct sum by rounding only: SNR 104 to 113 dB on noise with 128 to 2,560 inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from openvino import opset13 as ops

from ...bundle.merge import Allocator

__all__ = ["extra_inputs", "rewrite"]

TILE = 4
"""Side of a tile of results in pixels."""
SIDE = TILE + 2
"""Side of the inputs of a tile in pixels."""
CHANNELS = 128
"""Minimum number of input and of output channels. With fewer the transforms take longer than the saved products."""
PRODUCTS = 1 << 30
"""Minimum number of multiply-adds of the direct sum for which many operators in place of one are worthwhile."""
STRIP = 192 << 20
"""Maximum size in bytes of transformed inputs, 2.25 times that of the inputs; larger ones are computed in strips."""
STRIPS = 4
"""Maximum number of strips. Each adds about twenty operators, which OpenVINO visits many times during compilation."""

B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# The 36 products column by column, which is the order of the transformed inputs.
KERNEL = np.einsum("xj,yi->xyij", G, G).reshape(SIDE * SIDE, 9).astype(np.float32)
RESULT = np.einsum("yi,xj->yxji", A_T, A_T).reshape(TILE * TILE, SIDE * SIDE).astype(np.float32)

PLAIN = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}
TRANSFORM = "winograd"
"""Name of an additional input of rewritten models, float32 `[36, 9]`. It always has the same value, but must not be a
constant: OpenVINO would transform all kernels at compilation, and keep the results."""


def rewrite(
    model: Any, places: Allocator | None = None, smallest: Mapping[str, Sequence[int]] | None = None
) -> tuple[str, ...]:
    """Replace the 3 x 3 convolutions of a model that gain speed by it with Winograd's algorithm.

    Args:
        model: an `openvino.Model` in float32 that will be compiled for a CPU; it is changed in place.
        places: allocator of the arrays for the kernels G g G', which take four times the memory of g and must not
            change while the model lives. Without it they are computed in each run, which takes a small part of the time
            of a large image, and each run needs the `extra_inputs`.
        smallest: shapes of the inputs by name for the smallest image, needed where the model has dynamic shapes. All
            heights and widths must be multiples of that image's.

    Returns:
        Names of the replaced convolutions.
    """
    chosen = _chosen(model, smallest)
    kinds = {name: (np.dtype(np.float32), (SIDE * SIDE, 1, *_weight(op).shape[:2])) for name, op in chosen.items()}
    stored = places(kinds) if places else {}
    transform = ops.parameter([SIDE * SIDE, 9], np.float32, TRANSFORM)
    graph = _Graph()
    for name, op in chosen.items():
        if name in stored:
            np.matmul(KERNEL, _weight(op).reshape(-1, 9).T, out=stored[name].reshape(SIDE * SIDE, -1))
            kernels = ops.constant(stored[name], shared_memory=True)
        else:
            flat = ops.reshape(op.input_value(1), graph.ints(-1, 9), False)
            kernels = ops.reshape(ops.matmul(transform, flat, False, True), graph.ints(*kinds[name][1]), False)
        replacement = graph.convolution(op.input_value(0), kernels)
        for user in op.output(0).get_target_inputs():
            user.replace_source_output(replacement.output(0))
        replacement.set_friendly_name(name)
    if chosen and not places:
        transform.output(0).set_names({TRANSFORM})
        model.add_parameters([transform])
    model.validate_nodes_and_infer_types()
    return tuple(chosen)


def extra_inputs(model: Any) -> dict[str, np.ndarray]:
    """Return the additional inputs that a run of a compiled model needs.

    Args:
        model: a compiled model, rewritten or not.
    """
    return {TRANSFORM: KERNEL} if any(TRANSFORM in port.get_names() for port in model.inputs) else {}


def _chosen(model: Any, smallest: Mapping[str, Sequence[int]] | None) -> dict[str, Any]:
    known = not model.is_dynamic()
    own = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
    if not known:
        if smallest is None:
            return {}
        model.reshape({name: list(shape) for name, shape in smallest.items()})
    able = {op.get_friendly_name(): op for op in model.get_ordered_ops() if _fits(op)}
    # Convolutions of the same inputs, such as LoRA's A and its layer, share the transformed inputs.
    gaining = {op.input_value(0) for op in able.values() if _gains(op, known)}
    if not known:
        model.reshape(own)
    return {name: op for name, op in able.items() if op.input_value(0) in gaining}


def _fits(op: Any) -> bool:
    """Return True for a convolution that can be rewritten. The shapes of the model must be static."""
    if op.get_type_name() != "Convolution":
        return False
    kernels, attributes = op.input_value(1), op.get_attributes()
    if kernels.get_node().get_type_name() != "Constant" or kernels.get_element_type().get_type_name() != "f32":
        return False
    *_, height, width = op.get_output_shape(0)
    plain = all(attributes[key] == value for key, value in PLAIN.items()) and attributes["auto_pad"] == "explicit"
    return plain and kernels.get_shape()[2:] == [3, 3] and height % TILE == width % TILE == 0


def _gains(op: Any, known: bool) -> bool:
    outputs, inputs, *_ = op.get_input_shape(1)
    products = prod(op.get_output_shape(0)) * inputs * 9
    return min(outputs, inputs) >= CHANNELS and (not known or products >= PRODUCTS)


def _weight(op: Any) -> np.ndarray:
    """Return the kernels `[out, in, 3, 3]` of a convolution."""
    return op.input_value(1).get_node().data


@dataclass(frozen=True)
class _Strip:
    """Transformed inputs of a strip of an image: the right operand of the matrix product.

    Attributes:
        operand: `[36, N, in, tiles]`, or `[36, N, tiles, in]` where transposed.
        transposed: whether the last two axes of the operand are swapped.
        sizes: N, and the numbers of tiles per column and per row: integers where they are static, else int64 `[1]`
            nodes of the graph.
    """

    operand: Any
    transposed: bool
    sizes: tuple[Any, Any, Any]


class _Graph:
    """Builder of convolutions in one model. They share constants and the transforms of common inputs."""

    def __init__(self) -> None:
        self._result = ops.constant(RESULT)
        self.ints = cache(lambda *values: ops.constant(np.array(values, np.int64)))
        self._row = cache(_depthwise)
        self._strips: dict[Any, list[_Strip]] = {}

    def convolution(self, x: Any, kernels: Any) -> Any:
        """Return the convolution `[N, out, H, W]` of x.

        Args:
            x: inputs `[N, in, H, W]`; H and W are multiples of `TILE`.
            kernels: transformed kernels `[36, 1, out, in]`.
        """
        if x not in self._strips:
            self._strips[x] = list(self._transformed(x, kernels.output(0).get_shape()[-1]))
        results = [self._results(strip, kernels) for strip in self._strips[x]]
        return results[0] if len(results) == 1 else ops.concat(results, 2)

    def _transformed(self, x: Any, inputs: int) -> Iterator[_Strip]:
        shape, strips, rows, height = x.get_partial_shape(), 1, 0, 0
        if shape.is_static:
            batch, _, height, width = shape.to_shape()
            rows = height // TILE
            strips = min(-(-4 * SIDE * SIDE * batch * inputs * rows * (width // TILE) // STRIP), STRIPS, rows)
        if strips == 1:
            yield self._strip(x, inputs, 1, 1)
            return
        for begin, end in pairwise(TILE * (rows * index // strips) for index in range(strips + 1)):
            above, below = int(begin > 0), int(end < height)  # a row of the neighboring strip, else of zeros
            part = ops.slice(x, self.ints(begin - above), self.ints(end + below), self.ints(1), self.ints(2))
            yield self._strip(part, inputs, 1 - above, 1 - below)

    def _strip(self, x: Any, inputs: int, top: int, bottom: int) -> _Strip:
        """Transform x `[N, in, h, w]` with `top` and `bottom` rows of zeros around it."""
        # Channel by channel, down the columns of the image and then along its rows.
        rows = [self._row(inputs, index, (SIDE, 1)) for index in range(SIDE)]
        down = [ops.group_convolution(x, row, [TILE, 1], [top, 0], [bottom, 0], [1, 1]) for row in rows]
        columns = ops.concat(down, 0)
        rows = [self._row(inputs, index, (1, SIDE)) for index in range(SIDE)]
        along = [ops.group_convolution(columns, row, [1, TILE], [0, 1], [0, 1], [1, 1]) for row in rows]
        tiles = ops.concat(along, 0)  # [36 N, in, h / 4, w / 4]
        sizes = self._sizes(tiles)
        batch = sizes[0]
        # OpenVINO computes depthwise convolutions with the channels innermost. With static shapes that layout is kept
        # without a copy; with dynamic shapes OpenVINO has already converted back to the usual layout.
        if isinstance(batch, int):
            innermost = ops.transpose(tiles, self.ints(0, 2, 3, 1))
            return _Strip(ops.reshape(innermost, self.ints(SIDE * SIDE, batch, -1, inputs), False), True, sizes)
        return _Strip(ops.reshape(tiles, self._shape(SIDE * SIDE, batch, inputs, -1), False), False, sizes)

    def _results(self, strip: _Strip, kernels: Any) -> Any:
        """Return the results `[N, out, h, w]` of a strip."""
        outputs, (batch, height, width) = kernels.output(0).get_shape()[-2], strip.sizes
        products = ops.matmul(kernels, strip.operand, False, strip.transposed)  # [36, N, out, tiles]
        results = ops.matmul(self._result, ops.reshape(products, self.ints(SIDE * SIDE, -1), False), False, False)
        split = ops.reshape(results, self._shape(TILE, TILE, batch, outputs, height, width), False)
        ordered = ops.transpose(split, self.ints(2, 3, 4, 0, 5, 1))
        wide = width * TILE if isinstance(width, int) else ops.multiply(width, self.ints(TILE))
        return ops.reshape(ordered, self._shape(batch, outputs, -1, wide), False)

    def _sizes(self, tiles: Any) -> tuple[Any, Any, Any]:
        """Return N, h and w of tiles `[36 N, in, h, w]`; see `_Strip.sizes`."""
        shape = tiles.get_output_partial_shape(0)
        if shape.is_static:
            batch, _, height, width = shape.to_shape()
            return batch // (SIDE * SIDE), height, width
        found, first = ops.shape_of(tiles), ops.constant(np.int64(0))
        batch, height, width = (ops.gather(found, self.ints(axis), first) for axis in (0, 2, 3))
        return ops.divide(batch, self.ints(SIDE * SIDE)), height, width

    def _shape(self, *sizes: Any) -> Any:
        """Return a shape, int64 `[len(sizes)]`, from integers and results of `_sizes`."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*sizes)
        return ops.concat([self.ints(size) if isinstance(size, int) else size for size in sizes], 0)


def _depthwise(channels: int, row: int, sides: tuple[int, int]) -> Any:
    """Return the kernels of a depthwise convolution: one row of B' for each channel."""
    return ops.constant(np.tile(B_T[row].reshape(1, 1, 1, *sides), (channels, 1, 1, 1, 1)))
