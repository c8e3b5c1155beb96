"""Joined low-rank branches compute the same as separate ones on the real OpenVINO; other sums are not joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from dod_runtime.backends.openvino.branches import join
from dod_runtime.bundle.merge import new_arrays

INPUTS, OUTPUTS, RANK = 6, 20, 3
RNG = np.random.default_rng(0)
W, B, A = (
    RNG.standard_normal(shape).astype(np.float32) for shape in ((OUTPUTS, INPUTS), (OUTPUTS, RANK), (RANK, INPUTS))
)
BIAS = RNG.standard_normal(OUTPUTS).astype(np.float32)
GIVEN = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"x": (2, 7, INPUTS), "gamma": (2, 1, RANK), "beta": (2, 1, RANK)}.items()
}
Write = Callable[[Any, Any, Any], Any]


def linear(x: Any, weight: np.ndarray) -> Any:
    """Return W x in the nodes that the exporter writes."""
    return ops.matmul(x, ops.transpose(ops.constant(weight), ops.constant(np.array([1, 0]))), False, False)


def low(x: Any, gamma: Any, beta: Any) -> Any:
    return ops.add(ops.multiply(gamma, linear(x, A)), beta)


def layer(x: Any, gamma: Any, beta: Any, weight: np.ndarray = W, up: np.ndarray = B) -> Any:
    return ops.add(ops.add(linear(x, weight), ops.constant(BIAS[: len(weight)])), linear(low(x, gamma, beta), up))


def model(write: Write) -> Any:
    inputs = []
    for name, each in GIVEN.items():
        inputs.append(ops.parameter([-1, -1 if name == "x" else 1, each.shape[2]], np.float32, name))
        inputs[-1].output(0).set_names({name})
    total = write(*inputs)
    total.set_friendly_name("layer")
    return openvino.Model([ops.tanh(total)], inputs)  # pyright: ignore[reportGeneralTypeIssues]


def run(made: Any) -> np.ndarray:
    compiled = openvino.Core().compile_model(
        made, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return np.array(compiled(GIVEN)[0])


def without_bias(x: Any, gamma: Any, beta: Any) -> Any:
    return ops.add(linear(x, W), linear(low(x, gamma, beta), B))


def swapped(x: Any, gamma: Any, beta: Any) -> Any:
    """Return the layer with the terms of its sums swapped."""
    shifted = ops.add(beta, ops.multiply(linear(x, A), gamma))
    return ops.add(linear(shifted, B), ops.add(ops.constant(BIAS), linear(x, W)))


def scaled(x: Any, gamma: Any, beta: Any) -> Any:
    branch = ops.multiply(linear(low(x, gamma, beta), B), ops.constant(np.float32(0.5)))
    return ops.add(ops.add(linear(x, W), ops.constant(BIAS)), branch)


@pytest.mark.parametrize("write", [layer, without_bias, swapped, scaled])
def test_joined_layers_compute_the_same(write: Write) -> None:
    expected, made = run(model(write)), model(write)
    before = sum(op.get_type_name() == "MatMul" for op in made.get_ops())
    assert join(made, new_arrays) == ("layer",)
    assert sum(op.get_type_name() == "MatMul" for op in made.get_ops()) == before - 1
    np.testing.assert_allclose(run(made), expected, atol=1e-6)


def narrow(x: Any, gamma: Any, beta: Any) -> Any:
    results = 2 * (INPUTS + RANK) - 1
    return layer(x, gamma, beta, W[:results], B[:results])


def of_other_inputs(x: Any, gamma: Any, beta: Any) -> Any:
    """Return a branch with one row for all rows of the layer: a sum broadcasts it, a matrix product would not."""
    mean = ops.reduce_mean(x, ops.constant(np.array([1])), True)
    return ops.add(linear(x, W), linear(low(mean, gamma, beta), B))


def of_channels(x: Any, gamma: Any, beta: Any) -> Any:
    """Return a branch that scales each output by another factor."""
    branch = ops.multiply(linear(low(x, gamma, beta), B), ops.constant(BIAS))
    return ops.add(linear(x, W), branch)


def no_branch(x: Any, gamma: Any, beta: Any) -> Any:
    return ops.add(linear(x, W), linear(ops.add(gamma, beta), B))


@pytest.mark.parametrize("write", [narrow, of_other_inputs, of_channels, no_branch])
def test_other_sums_are_not_joined(write: Write) -> None:
    expected, made = run(model(write)), model(write)
    assert join(made, new_arrays) == ()
    np.testing.assert_array_equal(run(made), expected)
