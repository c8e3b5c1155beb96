"""Merging of one condition into the weights of the plain UNet: equations (3) and (4) at a fixed modulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from ..errors import BundleError
from ..threads import for_each
from .schema import MergeEntry

__all__ = ["Allocator", "ArraySpecs", "merge", "merge_layer", "new_arrays"]

ArraySpecs: TypeAlias = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Dtype and shape of arrays by name."""
Allocator: TypeAlias = Callable[[ArraySpecs], dict[str, np.ndarray]]
"""Function that returns writable arrays of the requested dtypes and shapes, with any values."""

BLOCK = 1 << 18
"""Multiply-adds per block of a layer. A block's result fits the CPU's cache, and BLAS starts no threads for so few."""


def merge_layer(
    weight: np.ndarray,
    bias: np.ndarray,
    down: np.ndarray,
    up: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    scale: float,
    into: np.ndarray | None = None,
    transposed: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the low-rank branch of one layer: Eq. (3) and (4), W' = W + s B diag(gamma) A and b' = b + s B beta.

    This is exact for convolutions too, borders included: A carries the kernel and B is 1x1, so the branch is one
    convolution with the kernel B diag(gamma) A and the constant B beta. Computed in float32.

    Args:
        weight: W, `[out, in]` or `[out, in/groups, kh, kw]`.
        bias: b, `[out]`.
        down: A, `[r, in]` or `[r, in/groups, kh, kw]`.
        up: B, `[out, r]` or `[out, r, 1, 1]`.
        gamma: scale of the modulation, `[r]`.
        beta: shift of the modulation, `[r]`.
        scale: factor s of the branch.
        into: contiguous array of W's shape and dtype that W' is written to; by default a new one.
        transposed: the layer is a transposed convolution, with W `[in, out, kh, kw]` and A `[in, r, kh, kw]`.

    Returns:
        W' and b' in the shapes and dtypes of W and b.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> weight, bias, down, up = np.zeros((2, 2)), np.zeros(2), np.array([[1, 2]]), np.array([[3], [4]])
        >>> merged, shifted = merge_layer(weight, bias, down, up, gamma=np.ones(1), beta=np.ones(1), scale=0.5)
        >>> merged.tolist(), shifted.tolist()
        ([[1.5, 3.0], [2.0, 4.0]], [1.5, 2.0])
    """
    kept = 2 if transposed else 1  # leading axes of W that its flattened form keeps
    rank = down.shape[kept - 1]
    a = np.asarray(down, np.float32).reshape(*down.shape[:kept], -1)
    b = np.asarray(up, np.float32).reshape(up.shape[0], rank) * np.float32(scale)
    plain = weight.reshape(*weight.shape[:kept], -1)
    if plain.shape != (*a.shape[: kept - 1], len(b), a.shape[-1]) or not plain.size:
        raise ValueError(f"{list(up.shape)} and {list(down.shape)} for a weight {list(weight.shape)}")
    scaled = b * np.asarray(gamma, np.float32)
    merged = np.empty_like(weight, order="C") if into is None else into
    written = merged.reshape(plain.shape)
    rows = max(1, BLOCK // (plain[0].size * max(4, rank)))
    for start in range(0, len(plain), rows):
        some = slice(start, start + rows)
        block = scaled @ a[some] if transposed else scaled[some] @ a
        block += plain[some]
        written[some] = block
    shifted = np.asarray(bias, np.float32) + b @ np.asarray(beta, np.float32)
    return merged, shifted.astype(bias.dtype, copy=False)


def new_arrays(specs: ArraySpecs) -> dict[str, np.ndarray]:
    """Allocate arrays in memory.

    Args:
        specs: dtypes and shapes by name.

    Returns:
        Uninitialized arrays by name.
    """
    return {name: np.empty(shape, dtype) for name, (dtype, shape) in specs.items()}


def merge(
    tensors: Mapping[str, np.ndarray],
    entries: Iterable[MergeEntry],
    modulation: np.ndarray,
    allocate: Allocator = new_arrays,
) -> dict[str, np.ndarray]:
    """Merge one condition into the stored weights, one layer per thread at a time.

    Switching conditions always starts from the stored weights, never from merged ones: after A, B, A the weights of A
    are bit-identical to the first ones.

    Args:
        tensors: stored weights by name. They are not changed.
        entries: conditional layers.
        modulation: float32 `[N, 2, r]`; gamma is `modulation[i, 0]` and beta `modulation[i, 1]` for the layer of
            index i.
        allocate: provides the arrays of the result.

    Returns:
        The tensors that the condition changes, by name.

    Raises:
        BundleError: a tensor is missing or its shape does not fit, or a `bias_into` names no entry with a bias.
    """
    layers = {entry.layer: entry for entry in entries}
    without_bias = {entry.layer: entry for entry in layers.values() if entry.bias is None}
    absorbing = {name: _absorbing(layers, entry) for name, entry in without_bias.items() if entry.bias_into is not None}
    merged = allocate({name: _spec(tensors, each, name) for each in layers.values() for name in each.changes})
    shifts: dict[str, np.ndarray] = {}

    def one(entry: MergeEntry) -> None:
        shifts[entry.layer] = _merge_entry(tensors, modulation, merged, entry)

    for_each(one, layers.values())
    for name, (weight, bias) in absorbing.items():
        passed = np.asarray(merged[weight], np.float32) @ shifts[name]
        merged[bias][...] = np.asarray(merged[bias], np.float32) + passed
    return merged


def _absorbing(layers: Mapping[str, MergeEntry], entry: MergeEntry) -> tuple[str, str]:
    """Return the names of weight and bias of the layer that absorbs the shift of an entry."""
    into = layers.get(entry.bias_into or "")
    if into is None or into.bias is None:
        problem = "which is no conditional layer" if into is None else "which has no bias"
        raise BundleError(f"cannot merge {entry.layer}: its bias_into names {entry.bias_into!r}, {problem}")
    return into.weight, into.bias


def _spec(tensors: Mapping[str, np.ndarray], entry: MergeEntry, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    if name not in tensors:
        raise _missing(entry, name)
    return tensors[name].dtype, tensors[name].shape


def _merge_entry(
    tensors: Mapping[str, np.ndarray], modulation: np.ndarray, merged: Mapping[str, np.ndarray], entry: MergeEntry
) -> np.ndarray:
    """Write the tensors that one layer changes to `merged`, without the shifts of other layers. Return its b'."""
    try:
        weight = tensors[entry.weight]
        bias = np.zeros(tensors[entry.B].shape[0], np.float32) if entry.bias is None else tensors[entry.bias]
        gamma, beta = modulation[entry.index]
        into = merged[entry.weight] if entry.output is None else None
        factors = tensors[entry.A], tensors[entry.B]
        values = merge_layer(weight, bias, *factors, gamma, beta, entry.scale, into, entry.transposed)
        if entry.input is not None and entry.output is not None:
            result = np.asarray(tensors[entry.input], np.float32) @ np.asarray(values[0], np.float32).T
            merged[entry.output][...] = result
        if entry.bias is not None:
            merged[entry.bias][...] = values[1]
    except KeyError as error:
        raise _missing(entry, error.args[0]) from error
    except (IndexError, ValueError) as error:
        raise BundleError(f"cannot merge {entry.layer}: shapes do not fit ({error})") from error
    return values[1]


def _missing(entry: MergeEntry, name: str) -> BundleError:
    return BundleError(f"cannot merge {entry.layer}: the weights hold no tensor {name!r}")
