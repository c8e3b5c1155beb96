"""Merged layers compared with the low-rank branch computed independently in float64, for every kind of layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dod_runtime.bundle.merge import BLOCK, merge, merge_layer
from dod_runtime.bundle.schema import MergeEntry
from dod_runtime.errors import BundleError


def convolve(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    """Convolve x `[C, H, W]` with weight `[O, C, k, k]` and zero padding of k // 2, straight from the definition."""
    out, _, k, _ = weight.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight).reshape(out, *windows.shape[1:3])


def layer(random: np.random.Generator, out: int, into: int, rank: int, kernel: tuple[int, ...]):
    weight, bias = random.standard_normal((out, into, *kernel)), random.standard_normal(out)
    down = random.standard_normal((rank, into, *kernel))
    up = random.standard_normal((out, rank, *(1 for _ in kernel)))
    gamma, beta = random.standard_normal((2, rank))
    return [value.astype(np.float32) for value in (weight, bias, down, up, gamma, beta)]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_convolution_including_borders(kernel: int, stride: int) -> None:
    random = np.random.default_rng(kernel + stride)
    weight, bias, down, up, gamma, beta = layer(random, 6, 5, 3, (kernel, kernel))
    x = random.standard_normal((5, 9, 8))
    hidden = gamma[:, None, None] * convolve(x, down.astype(float), stride) + beta[:, None, None]
    branch = convolve(x, weight.astype(float), stride) + bias[:, None, None] + 0.7 * convolve(hidden, up.astype(float))
    merged, shifted = merge_layer(weight, bias, down, up, gamma, beta, 0.7)
    np.testing.assert_allclose(convolve(x, merged, stride) + shifted[:, None, None], branch, atol=1e-4)


def test_linear() -> None:
    random = np.random.default_rng(0)
    weight, bias, down, up, gamma, beta = layer(random, 7, 5, 2, ())
    x = random.standard_normal((4, 5))
    branch = x @ weight.T + bias + 0.3 * (gamma * (x @ down.T) + beta) @ up.T
    merged, shifted = merge_layer(weight, bias, down, up, gamma, beta, 0.3)
    np.testing.assert_allclose(x @ merged.T + shifted, branch, atol=1e-5)


def test_a_layer_of_many_blocks() -> None:
    values = layer(np.random.default_rng(3), 700, 33, 8, (3, 3))
    assert values[0].size * 8 > 3 * BLOCK
    weight, bias, down, up, gamma, beta = (value.astype(np.float64) for value in values)
    merged, shifted = merge_layer(*values, 0.7)
    branch = np.einsum("or,r,ri->oi", up[:, :, 0, 0], gamma, down.reshape(8, -1)).reshape(weight.shape)
    np.testing.assert_allclose(merged, weight + 0.7 * branch, atol=1e-5)
    np.testing.assert_allclose(shifted, bias + 0.7 * up[:, :, 0, 0] @ beta, atol=1e-5)


def test_transposed_convolution() -> None:
    random = np.random.default_rng(4)
    out, into, rank, kernel = 70, 130, 8, (4, 4)
    weight, bias, _, up, gamma, beta = layer(random, out, into, rank, kernel)
    weight = np.ascontiguousarray(weight.swapaxes(0, 1))
    down = random.standard_normal((into, rank, *kernel)).astype(np.float32)
    assert weight.size * rank > 3 * BLOCK
    place = np.empty_like(weight)
    merged, shifted = merge_layer(weight, bias, down, up, gamma, beta, 0.7, place, transposed=True)
    assert merged is place
    exact = [value.astype(np.float64) for value in (down, up[:, :, 0, 0], gamma, beta)]
    branch = np.einsum("irkl,or,r->iokl", *exact[:3])
    np.testing.assert_allclose(merged, weight + 0.7 * branch, atol=1e-5)
    np.testing.assert_allclose(shifted, bias + 0.7 * exact[1] @ exact[3], atol=1e-5)
    tensors = {"w": weight, "b": bias, "A": down, "B": up}
    entry = MergeEntry("up", 0, 0.7, "w", "b", "A", "B", transposed=True)
    found = merge(tensors, [entry], np.stack([gamma, beta])[None])
    np.testing.assert_array_equal(found["w"], merged)
    with pytest.raises(BundleError, match="up: shapes"):
        merge(tensors, [replace(entry, transposed=False)], np.stack([gamma, beta])[None])


def test_fp16_weights_are_merged_in_fp32_and_rounded_once() -> None:
    values = layer(np.random.default_rng(1), 8, 8, 4, (3, 3))
    fp16 = [value.astype(np.float16) for value in values[:4]]
    single = [value.astype(np.float32) for value in fp16]
    for found, exact in zip(merge_layer(*fp16, *values[4:], 1.0), merge_layer(*single, *values[4:], 1.0), strict=True):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, exact.astype(np.float16))


def test_merge_changes_only_the_tensors_of_its_entries() -> None:
    weight, bias, down, up, gamma, beta = layer(np.random.default_rng(2), 3, 3, 2, ())
    tensors = {"w": weight, "b": bias, "A": down, "B": up, "other": np.ones(3)}
    before = {name: value.copy() for name, value in tensors.items()}
    entry = MergeEntry("layer", 1, 0.5, "w", "b", "A", "B")
    modulation = np.stack([np.zeros((2, 2), np.float32), np.stack([gamma, beta])])
    merged = merge(tensors, [entry], modulation)
    assert merged.keys() == {"w", "b"}
    np.testing.assert_array_equal(merged["w"], merge_layer(weight, bias, down, up, gamma, beta, 0.5)[0])
    given = {"w": np.empty_like(weight), "b": np.empty_like(bias)}
    again = merge(tensors, [entry], modulation, lambda specs: {name: given[name] for name in specs})
    assert again["w"] is given["w"] and again["b"] is given["b"]
    for name, value in merged.items():
        np.testing.assert_array_equal(again[name], value)
    for name, value in before.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_layers_that_do_not_fit_are_named() -> None:
    weight, bias, down, up, gamma, beta = layer(np.random.default_rng(2), 3, 3, 2, ())
    tensors = {"w": weight, "b": bias, "A": down, "B": up}
    modulation = np.stack([gamma, beta])[None]
    with pytest.raises(BundleError, match="layer: .*'x'"):
        merge(tensors, [MergeEntry("layer", 0, 1, "x", "b", "A", "B")], modulation)
    with pytest.raises(BundleError, match="layer: shapes"):
        merge(tensors, [MergeEntry("layer", 5, 1, "w", "b", "A", "B")], modulation)
    with pytest.raises(BundleError, match="layer: shapes"):
        merge(tensors, [MergeEntry("layer", 0, 1, "w", "b", "B", "A")], modulation)
    wide = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(6, np.float32), "A": np.zeros((2, 4), np.float32)}
    for up in (np.zeros((2, 6), np.float32), np.zeros((3, 4), np.float32)):
        with pytest.raises(BundleError, match="layer: shapes"):
            merge({**wide, "B": up}, [MergeEntry("layer", 0, 1, "w", "b", "A", "B")], modulation)
    empty = {"w": np.zeros((6, 0), np.float32), "A": np.zeros((2, 0), np.float32), "B": np.zeros((6, 2), np.float32)}
    with pytest.raises(BundleError, match="layer: shapes"):
        merge({**wide, **empty}, [MergeEntry("layer", 0, 1, "w", "b", "A", "B")], modulation)


def test_shift_of_a_layer_without_bias_and_layer_with_constant_input() -> None:
    random = np.random.default_rng(3)
    value, out = layer(random, 6, 5, 2, ()), layer(random, 4, 6, 2, ())
    x, prompt = random.standard_normal((7, 5)).astype(np.float32), random.standard_normal((1, 3, 5)).astype(np.float32)
    names = ("weight", "bias", "A", "B")
    tensors = {f"v.{name}": each for name, each in zip(names, value, strict=False) if name != "bias"}
    tensors |= {f"out.{name}": each for name, each in zip(names, out, strict=False)}
    tensors |= {"prompt": prompt, "v.output": np.zeros((1, 3, 6), np.float32)}
    modulation = np.stack([np.stack(value[4:]), np.stack(out[4:])])
    into = MergeEntry("v", 0, 0.5, "v.weight", None, "v.A", "v.B", bias_into="out")
    entries = [into, MergeEntry("out", 1, 2.0, "out.weight", "out.bias", "out.A", "out.B")]
    merged = merge(tensors, entries, modulation)
    assert merged.keys() == {"v.weight", "out.weight", "out.bias"}
    weight, shift = merge_layer(value[0], np.zeros(6, np.float32), *value[2:], 0.5)
    last, bias = merge_layer(*out, 2.0)
    expected = (x @ weight.T + shift) @ last.T + bias
    found = x @ merged["v.weight"].T @ merged["out.weight"].T + merged["out.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    with pytest.raises(BundleError, match="v: .*'out'"):
        merge(tensors, [into], modulation)
    with pytest.raises(BundleError, match="v: .*'out'.*bias"):
        merge(tensors, [into, replace(entries[1], bias=None)], modulation)

    constant = MergeEntry("v", 0, 0.5, "v.weight", None, "v.A", "v.B", input="prompt", output="v.output")
    merged = merge(tensors, [constant], modulation)
    assert merged.keys() == {"v.output"}
    np.testing.assert_allclose(merged["v.output"], prompt @ weight.T, rtol=1e-5)


def test_layers_do_not_affect_each_other() -> None:
    random = np.random.default_rng(4)
    tensors, entries = {}, []
    for i in range(40):
        weight, bias, down, up, *_ = layer(random, 5 + i, 7, 2, ())
        tensors |= {f"w{i}": weight, f"b{i}": bias, f"A{i}": down, f"B{i}": up}
        entries.append(MergeEntry(f"layer {i}", i, 0.5, f"w{i}", f"b{i}", f"A{i}", f"B{i}"))
    modulation = random.standard_normal((40, 2, 2)).astype(np.float32)
    together = merge(tensors, entries, modulation)
    for entry in entries:
        for name, value in merge(tensors, [entry], modulation).items():
            np.testing.assert_array_equal(together[name], value)
    tensors["A20"] = tensors["A20"][:, 1:]
    with pytest.raises(BundleError, match="layer 20: shapes"):
        merge(tensors, entries, modulation)
