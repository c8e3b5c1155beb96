"""Merges one condition into the plain UNet's weights: equations (3) to (5) for a fixed degradation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from .errors import BundleError
from .manifest import MergeEntry

__all__ = ["merge", "merge_layer"]


def merge_layer(
    weight: np.ndarray,
    bias: np.ndarray,
    down: np.ndarray,
    up: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. (3)-(5) at a fixed modulation: W' = W + s B diag(gamma) A and b' = b + s B beta, computed in float32.

    weight W: [out, in] or [out, in/groups, kh, kw]; bias b: [out]; down A: [r, in] or [r, in/groups, kh, kw];
    up B: [out, r] or [out, r, 1, 1]; gamma, beta: [r]. Returns W' and b' in the shapes and dtypes of W and b.

    Exact for a convolution too, borders included: A carries the kernel and B is 1x1, so the branch is one
    convolution with the kernel B diag(gamma) A and the constant B beta.
    """
    rank = down.shape[0]
    b = np.asarray(up, np.float32).reshape(up.shape[0], rank)
    merged = (b * np.asarray(gamma, np.float32)) @ np.asarray(down, np.float32).reshape(rank, -1)
    scale32 = np.float32(scale)
    merged *= scale32  # in place: gigabytes at the paper's scale, where new pages cost more than the sums
    merged = merged.reshape(weight.shape)
    merged += weight
    shifted = np.asarray(bias, np.float32) + scale32 * (b @ np.asarray(beta, np.float32))
    return merged.astype(weight.dtype, copy=False), shifted.astype(bias.dtype, copy=False)


def merge(
    tensors: Mapping[str, np.ndarray], entries: Iterable[MergeEntry], modulation: np.ndarray
) -> dict[str, np.ndarray]:
    """The tensors that one condition changes, by name, from the stored ones; `tensors` is left as it is.

    modulation: float32 [N, 2, r], gamma = modulation[i, 0] and beta = modulation[i, 1] for the layer of index i.
    Always computed from the stored weights, never from merged ones: switching A, B, A gives A bit for bit.
    Raises BundleError where a tensor is missing or does not fit.
    """
    merged: dict[str, np.ndarray] = {}
    passed_on: list[tuple[str, np.ndarray]] = []
    layers = {}
    for entry in entries:
        layers[entry.layer] = entry
        try:
            weight = tensors[entry.weight]
            bias = np.zeros(weight.shape[0], np.float32) if entry.bias is None else tensors[entry.bias]
            gamma, beta = modulation[entry.index]
            values = merge_layer(weight, bias, tensors[entry.A], tensors[entry.B], gamma, beta, entry.scale)
            if entry.input is not None and entry.output is not None:
                result = np.asarray(tensors[entry.input], np.float32) @ np.asarray(values[0], np.float32).T
                merged[entry.output] = result.astype(tensors[entry.output].dtype, copy=False)
            else:
                merged[entry.weight] = values[0]
        except KeyError as error:
            raise BundleError(f"cannot merge {entry.layer}: the weights hold no tensor {error}") from error
        except (IndexError, ValueError) as error:
            raise BundleError(f"cannot merge {entry.layer}: shapes do not fit ({error})") from error
        if entry.bias is not None:
            merged[entry.bias] = values[1]
        elif entry.bias_into is not None:
            passed_on.append((entry.bias_into, values[1]))
    for name, shift in passed_on:
        if name in layers:
            into = layers[name]
            assert into.bias is not None
            passed = np.asarray(merged[into.weight], np.float32) @ shift
            merged[into.bias] = (np.asarray(merged[into.bias], np.float32) + passed).astype(merged[into.bias].dtype)
    return merged
