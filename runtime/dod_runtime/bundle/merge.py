"""Merges one condition into the plain UNet's weights: equations (3) to (5) for a fixed degradation."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

import numpy as np

from ..errors import BundleError
from .schema import MergeEntry

__all__ = ["Kinds", "Places", "merge", "merge_layer", "new_arrays", "side_by_side"]

Item = TypeVar("Item")
Kinds: TypeAlias = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""dtype and shape of arrays by name."""
Places: TypeAlias = Callable[[Kinds], dict[str, np.ndarray]]
"""Gives arrays that are to be written."""

BLOCK = 1 << 18
"""Multiply-adds that are done at a time: what they give stays in the cache, and a BLAS starts no threads over it."""
THREADS = 4
"""At most: what is merged comes from memory, and goes there."""


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
    """Eq. (3)-(5) at a fixed modulation: W' = W + s B diag(gamma) A and b' = b + s B beta, computed in float32.

    weight W: [out, in] or [out, in/groups, kh, kw]; bias b: [out]; down A: [r, in] or [r, in/groups, kh, kw];
    up B: [out, r] or [out, r, 1, 1]; gamma, beta: [r]; into: where W' is written, contiguous and like W, by default a
    new array; transposed: a transposed convolution's W [in, out, kh, kw] and A [in, r, kh, kw]. Returns W' and b' in
    the shapes and dtypes of W and b. Raises ValueError where the shapes do not fit.

    Exact for a convolution too, borders included: A carries the kernel and B is 1x1, so the branch is one
    convolution with the kernel B diag(gamma) A and the constant B beta.
    """
    kept = 2 if transposed else 1  # the axes of W that are not its kernel's, or its inputs'
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


def new_arrays(kinds: Kinds) -> dict[str, np.ndarray]:
    """Arrays in memory, with whatever values."""
    return {name: np.empty(shape, dtype) for name, (dtype, shape) in kinds.items()}


def merge(
    tensors: Mapping[str, np.ndarray],
    entries: Iterable[MergeEntry],
    modulation: np.ndarray,
    places: Places = new_arrays,
) -> dict[str, np.ndarray]:
    """The tensors that one condition changes, by name, from the stored ones; `tensors` is left as it is.

    modulation: float32 [N, 2, r], gamma = modulation[i, 0] and beta = modulation[i, 1] for the layer of index i.
    places: gives the arrays that are returned. Several threads merge a layer each.
    Always computed from the stored weights, never from merged ones: switching A, B, A gives A bit for bit.
    Raises BundleError where a tensor is missing or does not fit.
    """
    layers = {entry.layer: entry for entry in entries}
    merged = places({name: _kind(tensors, each, name) for each in layers.values() for name in each.changes})
    shifts: dict[str, np.ndarray] = {}

    def one(entry: MergeEntry) -> None:
        shifts[entry.layer] = _merge_entry(tensors, modulation, merged, entry)

    side_by_side(one, layers.values())
    for entry in layers.values():
        if entry.bias is None and entry.bias_into in layers:
            into = layers[entry.bias_into]
            assert into.bias is not None
            passed = np.asarray(merged[into.weight], np.float32) @ shifts[entry.layer]
            merged[into.bias][...] = np.asarray(merged[into.bias], np.float32) + passed
    return merged


def side_by_side(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Calls `work` with each item, in this thread and others. Raises the first error, when all have stopped.

    An executor would refuse: it takes no work once the main thread has ended, and others may go on restoring.
    """
    left, lock = deque(items), threading.Lock()
    failed: list[BaseException] = []

    def take() -> None:
        while not failed:
            with lock:
                if not left:
                    return
                item = left.popleft()
            try:
                work(item)
            except BaseException as error:
                failed.append(error)

    others = [threading.Thread(target=take, name="dod-opening") for _ in range(min(THREADS, os.cpu_count() or 1) - 1)]
    for thread in others:
        thread.start()
    take()
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]


def _kind(tensors: Mapping[str, np.ndarray], entry: MergeEntry, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    if name not in tensors:
        raise _missing(entry, name)
    return tensors[name].dtype, tensors[name].shape


def _merge_entry(
    tensors: Mapping[str, np.ndarray], modulation: np.ndarray, merged: Mapping[str, np.ndarray], entry: MergeEntry
) -> np.ndarray:
    """Writes what one layer changes into `merged`, but for what others pass on to it; returns its b'."""
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
