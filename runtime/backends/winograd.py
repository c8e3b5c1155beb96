"""Winograd's minimal filtering, F(4 x 4, 3 x 3), out of OpenVINO's own operators: a quarter of a convolution's products.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4: a tile of 4 x 4 results is
A' [sum over the inputs of (G g G') * (B' d B)] A, d the 6 x 6 values that it depends on, g the 3 x 3 kernel. For each of
the 36 products of a tile the sum is one product of matrices, and there nearly all of the time goes. In float32 its
results are those of the direct sum but for rounding: SNR 104 to 113 dB with noise and 128 to 2,560 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from openvino import opset13 as ops

from ..merge import Places, new_arrays

__all__ = ["rewrite"]

TILE = 4
SIDE = TILE + 2
CHANNELS = 128
"""Inputs and outputs from which the products that are saved take longer than the transforms."""
PRODUCTS = 1 << 30
"""Multiply-adds of the direct sum, from which one operator is worth replacing by many."""
STRIP = 96 << 20
"""Bytes that the inputs of a strip of tiles may take once they are transformed: 2.25 times what they took."""

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
# The 36 products in the order of the columns, in which the inputs' transforms give them.
KERNEL = np.einsum("xj,yi->xyij", G, G).reshape(SIDE * SIDE, 9).astype(np.float32)
RESULT = np.einsum("yi,xj->yxji", A_T, A_T).reshape(TILE * TILE, SIDE * SIDE).astype(np.float32)

PLAIN = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1]}


def rewrite(
    model: Any, places: Places = new_arrays, smallest: Mapping[str, Sequence[int]] | None = None
) -> tuple[str, ...]:
    """Puts Winograd's in the place of the 3 x 3 convolutions of a model that gain by it, and returns their names.

    model: an `openvino.Model` in float32 that is to be compiled for a CPU. places: gives arrays for the kernels G g G',
    which must stay as they are while the model lives. smallest: where the model's own shapes are not known, those of
    its inputs, by name, for a picture of whose height and width all others' are multiples.
    """
    chosen = _chosen(model, smallest)
    kinds = {name: (np.dtype(np.float32), (SIDE * SIDE, 1, *_weight(op).shape[:2])) for name, op in chosen.items()}
    for name, kernels in places(kinds).items():
        op = chosen[name]
        np.matmul(KERNEL, _weight(op).reshape(-1, 9).T, out=kernels.reshape(SIDE * SIDE, -1))
        instead = _convolution(op.input_value(0), kernels)
        for user in op.output(0).get_target_inputs():
            user.replace_source_output(instead.output(0))
        instead.set_friendly_name(name)
    model.validate_nodes_and_infer_types()
    return tuple(chosen)


def _chosen(model: Any, smallest: Mapping[str, Sequence[int]] | None) -> dict[str, Any]:
    known = not model.is_dynamic()
    if not known and smallest is None:
        return {}
    own = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
    if not known:
        model.reshape({name: list(shape) for name, shape in smallest.items()})
    chosen = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Convolution" and _fits(op):
            *_, height, width = op.get_output_shape(0)
            whole = height % TILE == width % TILE == 0
            if whole and (not known or prod(op.get_output_shape(0)) * prod(op.get_input_shape(1)[1:]) >= PRODUCTS):
                chosen[op.get_friendly_name()] = op
    if not known:
        model.reshape(own)
    return chosen


def _fits(op: Any) -> bool:
    kernels, attributes = op.input_value(1), op.get_attributes()
    if kernels.get_node().get_type_name() != "Constant" or kernels.get_element_type().get_type_name() != "f32":
        return False
    outputs, inputs, *sides = kernels.get_shape()
    plain = all(attributes[key] == value for key, value in PLAIN.items()) and attributes["auto_pad"] == "explicit"
    return plain and sides == [3, 3] and min(outputs, inputs) >= CHANNELS


def _weight(op: Any) -> np.ndarray:
    """Of a convolution, [out, in, 3, 3]."""
    return op.input_value(1).get_node().data


def _convolution(x: Any, kernels: np.ndarray) -> Any:
    """The convolution of x [N, in, H, W], H and W multiples of TILE, by `kernels` [36, 1, out, in]: [N, out, H, W]."""
    shape, strips = x.get_partial_shape(), 1
    if shape.is_static:
        batch, inputs, height, width = shape.to_shape()
        rows = height // TILE
        size = 4 * SIDE * SIDE * batch * inputs * rows * (width // TILE)
        strips = next((count for count in range(1, rows) if rows % count == 0 and size <= count * STRIP), rows)
    transforms = _Transforms(kernels)
    if strips == 1:
        return transforms.strip(x, 1, 1)
    high = height // strips
    parts = []
    for begin in range(0, height, high):
        above, below = int(begin > 0), int(begin + high < height)  # rows of the neighbours, else of zeros
        part = ops.slice(x, _ints(begin - above), _ints(begin + high + below), _ints(1), _ints(2))
        parts.append(transforms.strip(part, 1 - above, 1 - below))
    return ops.concat(parts, 2)


class _Transforms:
    """The constants of one convolution, shared by its strips."""

    def __init__(self, kernels: np.ndarray) -> None:
        _, _, self._outputs, self._inputs = kernels.shape
        self._kernels = ops.constant(kernels, shared_memory=True)
        self._result = ops.constant(RESULT)
        # One row of B' for each channel by itself, down the columns of the picture and then along its rows.
        self._down = [ops.constant(self._depthwise(row, (SIDE, 1))) for row in B_T]
        self._along = [ops.constant(self._depthwise(row, (1, SIDE))) for row in B_T]

    def _depthwise(self, row: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
        return np.tile(row.reshape(1, 1, 1, *sides), (self._inputs, 1, 1, 1, 1))

    def strip(self, x: Any, top: int, bottom: int) -> Any:
        """The results of a strip x [N, in, h, w]; top, bottom: rows of zeros to be added, of those that lie around."""
        down = [ops.group_convolution(x, row, [TILE, 1], [top, 0], [bottom, 0], [1, 1]) for row in self._down]
        columns = ops.concat(down, 0)
        along = [ops.group_convolution(columns, row, [1, TILE], [0, 1], [0, 1], [1, 1]) for row in self._along]
        tiles = ops.concat(along, 0)  # [36 N, in, h / 4, w / 4]
        batch, height, width = (_size(tiles, axis) for axis in (0, 2, 3))
        batch = ops.divide(batch, _ints(SIDE * SIDE))
        products = ops.matmul(self._kernels, *self._columns(tiles, batch))
        # [16, 36] times [36, N out tiles]
        results = ops.matmul(self._result, ops.reshape(products, _ints(SIDE * SIDE, -1), False), False, False)
        split = ops.concat([_ints(TILE, TILE), batch, _ints(self._outputs), height, width], 0)
        ordered = ops.transpose(ops.reshape(results, split, False), _ints(2, 3, 4, 0, 5, 1))
        high, wide = (ops.multiply(size, _ints(TILE)) for size in (height, width))
        return ops.reshape(ordered, ops.concat([batch, _ints(self._outputs), high, wide], 0), False)

    def _columns(self, tiles: Any, batch: Any) -> tuple[Any, bool, bool]:
        """The right hand of the product [36, N, in, tiles], and whether the left and it are to be transposed.

        OpenVINO computes each channel by itself with the channels innermost. Where it knows all sizes that order is
        kept, without a copy; where it does not, it has returned to the usual one before.
        """
        if tiles.get_output_partial_shape(0).is_static:
            innermost = ops.transpose(tiles, _ints(0, 2, 3, 1))
            shape = ops.concat([_ints(SIDE * SIDE), batch, _ints(-1, self._inputs)], 0)
            return ops.reshape(innermost, shape, False), False, True
        shape = ops.concat([_ints(SIDE * SIDE), batch, _ints(self._inputs, -1)], 0)
        return ops.reshape(tiles, shape, False), False, False


def _ints(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def _size(x: Any, axis: int) -> Any:
    """The length of an axis, int64 [1]."""
    return ops.gather(ops.shape_of(x), _ints(axis), ops.constant(np.int64(0)))
