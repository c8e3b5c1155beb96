"""Winograd's convolutions agree with direct ones on the real OpenVINO; others are not rewritten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from dod_runtime.backends.openvino import winograd
from dod_runtime.backends.openvino.winograd import A_T, B_T, G, extra_inputs, rewrite
from dod_runtime.bundle.merge import Allocator, new_arrays

CORE = openvino.Core()
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
INPUTS, OUTPUTS = 12, 20


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewrite every convolution that can be rewritten, small ones included."""
    monkeypatch.setattr(winograd, "CHANNELS", 1)
    monkeypatch.setattr(winograd, "PRODUCTS", 1)


def convolution(shape: list[int], **changes: Any) -> Any:
    """Return a model of one convolution with bias and ReLU; x has the given shape."""
    rng = np.random.default_rng(0)
    side = changes.pop("side", 3)
    weight = rng.standard_normal((OUTPUTS, INPUTS, side, side)).astype(np.float32)
    arguments: dict[str, Any] = {"strides": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1]}
    x = ops.parameter(shape, np.float32, "x")
    x.output(0).set_names({"x"})
    y = ops.convolution(x, ops.constant(weight), **{**arguments, **changes})
    y.set_friendly_name("conv")
    bias = rng.standard_normal((1, OUTPUTS, 1, 1)).astype(np.float32)
    return openvino.Model([ops.relu(ops.add(y, ops.constant(bias)))], [x])  # pyright: ignore[reportGeneralTypeIssues]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    compiled = CORE.compile_model(model, "CPU", SETTINGS)
    return np.array(compiled({"x": x, **extra_inputs(compiled)})[0])


def snr(reference: np.ndarray, found: np.ndarray) -> float:
    error = float(((reference.astype(np.float64) - found) ** 2).sum())
    return math.inf if error == 0 else 10 * math.log10(float((reference.astype(np.float64) ** 2).sum()) / error)


def kinds_of(model: Any) -> set[str]:
    return {op.get_type_name() for op in model.get_ops()}


def test_the_matrices_compute_every_convolution_of_a_row() -> None:
    for taps in np.eye(3):
        for values in np.eye(6):
            expected = np.correlate(values, taps)
            np.testing.assert_allclose(A_T @ ((G @ taps) * (B_T.astype(float) @ values)), expected, atol=1e-14)


@pytest.mark.parametrize("places", [new_arrays, None], ids=["stored", "in each run"])
@pytest.mark.parametrize("shape", [(1, INPUTS, 4, 4), (1, INPUTS, 8, 20), (3, INPUTS, 16, 8)])
@pytest.mark.parametrize("strip", [1 << 30, 1])
@pytest.mark.usefixtures("everywhere")
def test_static_shapes(
    shape: tuple[int, ...], strip: int, places: Allocator | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "STRIP", strip)
    model, x = convolution(list(shape)), noise(*shape)
    expected = run(model, x)
    assert rewrite(model, places) == ("conv",)
    assert "Convolution" not in kinds_of(model) and ("Slice" in kinds_of(model)) == (strip == 1 and shape[2] > 4)
    found = run(model, x)
    assert found.shape == expected.shape and snr(expected, found) > 100


@pytest.mark.parametrize("places", [new_arrays, None], ids=["stored", "in each run"])
@pytest.mark.usefixtures("everywhere")
def test_dynamic_shapes(places: Allocator | None) -> None:
    direct, model = convolution([-1, INPUTS, -1, -1]), convolution([-1, INPUTS, -1, -1])
    assert rewrite(model, places) == (), "dynamic shapes need those of the smallest image"
    assert rewrite(model, places, {"x": (1, INPUTS, 8, 4)}) == ("conv",)
    assert model.input("x").get_partial_shape().same_scheme(direct.input("x").get_partial_shape())
    for shape in ((1, INPUTS, 8, 4), (2, INPUTS, 24, 40), (3, INPUTS, 16, 4)):
        x = noise(*shape)
        assert snr(run(direct, x), run(model, x)) > 100


@pytest.mark.parametrize("sides", [(6, 8), (8, 2), (5, 5)])
@pytest.mark.usefixtures("everywhere")
def test_sizes_that_are_no_multiples_of_a_tile_are_not_rewritten(sides: tuple[int, int]) -> None:
    for shape, smallest in (([1, INPUTS, *sides], None), ([-1, INPUTS, -1, -1], {"x": (1, INPUTS, *sides)})):
        model = convolution(shape)
        assert rewrite(model, None, smallest) == ()
        assert not extra_inputs(model) and "Convolution" in kinds_of(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads_begin": [2, 2], "pads_end": [2, 2]},
        {"pads_begin": [0, 1], "pads_end": [2, 1]},
        {"auto_pad": "same_upper", "strides": [1, 2]},
        {"side": 1, "pads_begin": [0, 0], "pads_end": [0, 0]},
        {"side": 5, "pads_begin": [2, 2], "pads_end": [2, 2]},
    ],
)
@pytest.mark.usefixtures("everywhere")
def test_other_convolutions_are_not_rewritten(changes: dict[str, Any]) -> None:
    model, x = convolution([1, INPUTS, 8, 8], **changes), noise(1, INPUTS, 8, 8)
    expected = run(model, x)
    assert rewrite(model, new_arrays) == ()
    np.testing.assert_array_equal(run(model, x), expected)


def test_convolutions_that_would_not_gain_are_not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    products = 8 * 8 * 9 * INPUTS * OUTPUTS
    for channels, least, expected in ((INPUTS, products, 1), (INPUTS + 1, products, 0), (INPUTS, products + 1, 0)):
        monkeypatch.setattr(winograd, "CHANNELS", channels)
        monkeypatch.setattr(winograd, "PRODUCTS", least)
        assert len(rewrite(convolution([1, INPUTS, 8, 8]))) == expected


@pytest.mark.parametrize("shape", [[1, INPUTS, 8, 8], [-1, INPUTS, -1, -1]], ids=["static", "dynamic"])
@pytest.mark.parametrize("strip", [1 << 30, 1])
def test_convolutions_of_transformed_inputs_are_rewritten_too(
    shape: list[int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution with few outputs, such as LoRA's A, gains only where it shares the inputs of its layer."""
    monkeypatch.setattr(winograd, "CHANNELS", INPUTS)
    monkeypatch.setattr(winograd, "PRODUCTS", 1)
    monkeypatch.setattr(winograd, "STRIP", strip)

    def beside(other: bool) -> Any:
        model = convolution(shape)
        (x,) = model.get_parameters()
        rng = np.random.default_rng(2)
        weight = ops.constant(rng.standard_normal((3, INPUTS, 3, 3)).astype(np.float32))
        y = ops.convolution(ops.relu(x) if other else x, weight, [1, 1], [1, 1], [1, 1], [1, 1])
        y.set_friendly_name("few")
        model.add_results([ops.result(y)])
        return model

    assert rewrite(beside(other=True), None, {"x": (1, INPUTS, 8, 8)}) == ("conv",)
    model, x = beside(other=False), noise(1, INPUTS, 8, 8)
    compiled = CORE.compile_model(beside(other=False), "CPU", SETTINGS)
    expected = [np.array(each) for each in compiled(x).values()]
    assert set(rewrite(model, None, {"x": (1, INPUTS, 8, 8)})) == {"conv", "few"}
    strips = 2 if strip == 1 and shape[0] == 1 else 1
    assert sum(op.get_type_name() == "GroupConvolution" for op in model.get_ops()) == 12 * strips
    compiled = CORE.compile_model(model, "CPU", SETTINGS)
    for one, other in zip(expected, compiled({"x": x, **extra_inputs(compiled)}).values(), strict=True):
        assert snr(one, np.array(other)) > 100
