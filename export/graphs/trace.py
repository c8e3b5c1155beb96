"""Tracing of the components to ONNX, with their weights in safetensors files.

The weights are inputs of the trace and become initializers afterwards, so nothing folds, renames or transposes them. A
tensor of the file, an initializer of the graph and a parameter of the model have the same name. Both UNet graphs share
one file, and a merged condition is a set of values for the same graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dod.model import clora
from dod.model.dod import DOD
from dod_runtime.bundle.safetensors import ALIGNMENT, tensor_spans, write_tensors
from export.errors import GraphError
from export.graphs import lora_op
from export.graphs.components import GraphPlan, graphs_of, meta_copy, plan
from export.graphs.group_norm import split_sums
from export.graphs.optimize import tidy
from export.graphs.simplify import attentions

__all__ = ["OPSETS", "named_weights", "trace", "trace_planned", "weights_of", "write_weights"]

OPSETS = {"fp32": 20, "fp16": 22}
"""ONNX opset of each precision. From 21 on a GroupNorm is one operator, with float32 statistics in fp16 graphs; ONNX
Runtime on CPU is faster at 20."""
_FULL_SIZE_GRAPHS = ("encoder", "decoder")
"""Graphs whose normalizations sum over whole images. Those of the UNet see an eighth of each side."""
_GROUP_NORMALIZATION = 21
"""First opset in which the exporter writes a GroupNorm as one operator."""


class _Weightless(nn.Module):
    """Module without parameters that calls another one with weights passed as arguments."""

    _module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_module", module)

    def forward(self, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        return functional_call(self._module, weights, (), inputs)


def weights_of(model: DOD, file: str) -> dict[str, Tensor]:
    """Return the tensors of one weights file.

    The UNet's file holds the base weights under their plain names and the low-rank factors as `<layer>.lora_A.weight`
    and `<layer>.lora_B.weight`. It also holds tensors that only the merged graph uses, see `simplify_merged`: a zero
    bias for each query, and the keys and values of the prompt.

    Args:
        model: The model.
        file: Name of the weights file, one of the values of `graphs_of(model)`.

    Returns:
        Tensors by name. They share memory with the model's where they are its own.
    """
    if file != "unet":
        graph = next(graph for graph, weights in graphs_of(model).items() if weights == file)
        return named_weights(plan(model, graph).module)
    named = named_weights(model.unet)
    for name, attention in attentions(model.unet.unet):
        query = named[f"{name}.to_q.weight"]
        named.setdefault(f"{name}.to_q.bias", query.new_zeros(query.shape[0]))
        for layer in ("to_k", "to_v") if attention.is_cross_attention else ():
            weight = named[f"{name}.{layer}.weight"]
            named[f"{name}.{layer}.output"] = (named["prompt"].double() @ weight.double().T).to(weight.dtype)
    return named


def write_weights(model: DOD, like: DOD, file: str, path: Path) -> dict[str, str]:
    """Write one weights file.

    Args:
        model: The model in fp32.
        like: A model of the same structure, for example a meta copy, that has the dtype to write each tensor in.
        file: Name of the weights file, one of the values of `graphs_of(model)`.
        path: Safetensors file to write.

    Returns:
        `{"sha256": ...}`, the hash of the file.
    """
    dtypes = {name: tensor.dtype for name, tensor in weights_of(like, file).items()}
    tensors = weights_of(model, file)
    odd = {name: tensor.numel() * dtypes[name].itemsize % ALIGNMENT for name, tensor in tensors.items()}
    # tensors of odd length come last, so that all others stay aligned
    tensors = {name: tensors[name] for name in sorted(tensors, key=lambda name: odd[name] > 0)}
    shapes = {name: (_numpy(dtypes[name]), tuple(tensor.shape)) for name, tensor in tensors.items()}
    values = (tensor.detach().to(dtypes[name]).numpy() for name, tensor in tensors.items())
    return {"sha256": write_tensors(path, shapes, values)}


def trace(model: DOD, graph: str, path: Path, weights_path: Path, opset: int) -> None:
    """Trace one graph and check it. Batch, height and width are dynamic.

    Only the structure of the model is traced; its values are neither read nor copied.

    Args:
        model: The model.
        graph: One of `graphs_of(model)`.
        path: ONNX file to write.
        weights_path: Weights file in the same folder that the initializers point into.
        opset: ONNX opset, see `OPSETS`.

    Raises:
        GraphError: If the exporter or onnx's full check refuses the graph.
    """
    trace_planned(plan(meta_copy(model), graph), graph, path, weights_path, opset)


def trace_planned(planned: GraphPlan, graph: str, path: Path, weights_path: Path, opset: int) -> None:
    """Trace a component and check the graph.

    Args:
        planned: The component, on the meta device.
        graph: Its name in error messages. GroupNorms of several groups are split if it is `encoder` or `decoder`.
        path: ONNX file to write.
        weights_path: Weights file in the same folder that the initializers point into.
        opset: ONNX opset.

    Raises:
        GraphError: If the exporter or onnx's full check refuses the graph.
    """
    if opset < _GROUP_NORMALIZATION:
        split_sums(planned.module, several=graph in _FULL_SIZE_GRAPHS)
    lora_op.join(planned.module)
    with torch.no_grad():
        expected = planned.module(**planned.inputs)
    # The exporter reads constants on the inputs' device, so all moves to the CPU; the weights' pages stay untouched.
    inputs = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in planned.inputs.items()}
    planned = replace(planned, module=planned.module.to_empty(device="cpu"), inputs=inputs)
    weights = _state(planned.module)
    program = _export(planned, weights, opset, graph)
    tidy(program.model)
    outputs = expected if isinstance(expected, tuple) else (expected,)
    _name_interface(program.model.graph, planned, [tuple(output.shape) for output in outputs])
    _externalise(program.model.graph, list(planned.inputs), list(weights), weights_path)
    ir.save(program.model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"{graph}: the traced graph does not pass onnx's full check: {error}") from None


def _export(planned: GraphPlan, weights: dict[str, Tensor], opset: int, graph: str) -> torch.onnx.ONNXProgram:
    shapes = {
        "inputs": {
            name: {axis: _dimension(label, planned.multiple) for axis, label in axes.items()}
            for name, axes in planned.axes.items()
        },
        "weights": dict.fromkeys(weights),
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                _Weightless(planned.module),
                (),
                kwargs={"inputs": planned.inputs, "weights": {k: v.detach() for k, v in weights.items()}},
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                custom_translation_table=lora_op.TRANSLATIONS,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise GraphError(f"{graph}: torch.onnx.export refused it: {str(error).strip().splitlines()[-1]}") from error
    assert program is not None
    return program


def _dimension(label: str, multiple: int) -> torch.export.Dim:
    """Return a dynamic axis: the batch, or a side in units of the size multiple.

    The exporter would trace a second time if it had to find out about the multiple.
    """
    name, _, divisor = label.partition("/")
    if name == "batch":
        return torch.export.Dim(name)
    factor, unit = multiple // int(divisor or 1), torch.export.Dim(f"{name}_units")
    return unit if factor == 1 else factor * unit


def _name_interface(graph: ir.Graph, planned: GraphPlan, expected: Sequence[tuple[int, ...]]) -> None:
    """Set the names and dimension labels of inputs and outputs."""
    known: dict[int, tuple[int, str]] = {}
    for (name, example), value in zip(planned.inputs.items(), graph.inputs, strict=False):
        labels = planned.axes[name]
        value.name = name
        value.shape = ir.Shape([labels.get(axis, size) for axis, size in enumerate(example.shape)])
        known |= {axis: (example.shape[axis], label) for axis, label in labels.items()}
    for name, value, shape in zip(planned.outputs, graph.outputs, expected, strict=True):
        if value.shape is None or len(value.shape) != len(shape):
            raise GraphError(f"output {name} was traced with shape {value.shape}, expected {len(shape)} axes")
        value.name = name
        value.shape = ir.Shape(
            [size if isinstance(traced, int) else _label(size, *known[axis]) for axis, (traced, size) in
             enumerate(zip(value.shape, shape, strict=True))]
        )  # fmt: skip


def _label(size: int, known: int, label: str) -> str:
    """Return the label of an output size from the size and label of an input along the same axis.

    Example:
        >>> _label(24, 192, "height")
        'height/8'
    """
    name, _, divisor = label.partition("/")
    if size == known:
        return label
    ratio = Fraction(int(divisor or 1) * known, size)
    return name if ratio == 1 else f"{name}/{ratio}"


def _externalise(graph: ir.Graph, inputs: list[str], weights: list[str], weights_path: Path) -> None:
    """Turn the weight inputs into initializers whose data are in the safetensors file."""
    stored = tensor_spans(weights_path)
    values = list(graph.inputs)[len(inputs) :]
    if len(values) != len(weights):
        raise GraphError(f"{len(weights)} weights were traced as {len(values)} inputs")
    del graph.inputs[len(inputs) :]
    for name, value in zip((_plain(name) for name in weights), values, strict=True):
        if not list(value.uses()):
            continue
        if name not in stored:
            raise GraphError(f"{weights_path} holds no weight {name} of the traced graph: build the bundle again")
        span = stored[name]
        value.name = name
        value.const_value = ir.ExternalTensor(
            weights_path.name,
            span.begin,
            span.end - span.begin,
            ir.DataType.from_numpy(span.dtype),
            shape=ir.Shape(span.shape),
            name=name,
            base_dir=weights_path.parent,
        )
        graph.register_initializer(value)


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a planned module under their names in the graph.

    Args:
        module: The module of a `GraphPlan`.

    Returns:
        Parameters and buffers by name.
    """
    return {_plain(name): tensor for name, tensor in _state(module).items()}


def _plain(name: str) -> str:
    """Return the name of a parameter without the parts that wrappers add: peft, the one-step UNet, the flat encoder.

    Example:
        >>> _plain("unet.mid_block.proj.base_layer.weight")
        'mid_block.proj.weight'
    """
    for prefix in ("part.", "unet."):
        name = name.removeprefix(prefix)
    return name.replace(".base_layer.", ".").replace(f".{clora.ADAPTER}.", ".")
