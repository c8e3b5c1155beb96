"""The model's components traced to ONNX, with their weights in a safetensors file under their own names.

The weights enter the trace as inputs and become initializers afterwards. So nothing folds, renames or transposes them:
a tensor of the file, an initializer of the graph and a parameter of the model carry the same name, both UNet graphs
share one file, and a merged condition is a set of values for the same graph.
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

OPSETS = {"fp32": 20, "fp16": 22}
"""23 has GroupNormalization, with float32 statistics in half graphs; ONNX Runtime on CPU is faster at 20."""
IMAGES = ("encoder", "decoder")
"""The graphs whose normalisations sum over whole images, a UNet's over an eighth of their width and height."""
GROUP_NORMALIZATION = 21
"""The opset from which the exporter writes a GroupNorm as one operator."""


class _Weightless(nn.Module):
    """Calls a module with weights that are given with the call; it has none of its own."""

    _module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_module", module)

    def forward(self, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        return functional_call(self._module, weights, (), inputs)


def weights_of(model: DOD, file: str) -> dict[str, Tensor]:
    """The tensors of one weights file by name, those of the model itself wherever nothing is merged.

    The UNet's holds the base weights under their plain names, the low-rank factors as `<layer>.lora_A.weight` and
    `<layer>.lora_B.weight`, and what only the merged graph has, see `simplify_merged`: a bias of zeros for each query,
    and the base's keys and values of the prompt.
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
    """Write one weights file, each tensor in the dtype that it has in `like`; its `sha256`, taken while writing."""
    dtypes = {name: tensor.dtype for name, tensor in weights_of(like, file).items()}
    tensors = weights_of(model, file)
    odd = {name: tensor.numel() * dtypes[name].itemsize % ALIGNMENT for name, tensor in tensors.items()}
    tensors = {name: tensors[name] for name in sorted(tensors, key=lambda name: odd[name] > 0)}  # the others aligned
    shapes = {name: (_numpy(dtypes[name]), tuple(tensor.shape)) for name, tensor in tensors.items()}
    values = (tensor.detach().to(dtypes[name]).numpy() for name, tensor in tensors.items())
    return {"sha256": write_tensors(path, shapes, values)}


def trace(model: DOD, graph: str, path: Path, weights_path: Path, opset: int) -> None:
    """Trace one graph to `path`, its initializers pointing into `weights_path` (in the same folder), and check it.

    Batch, height and width are dynamic. No value of the model is read, nor is memory taken for any: only its structure
    is traced. GraphError where the exporter or onnx's full check refuses it.
    """
    trace_planned(plan(meta_copy(model), graph), graph, path, weights_path, opset)


def trace_planned(planned: GraphPlan, graph: str, path: Path, weights_path: Path, opset: int) -> None:
    """`trace` for a plan of one's own, whose module lies on the meta device. graph: its name in errors, and one of
    `IMAGES` where its normalisations are to be split."""
    if opset < GROUP_NORMALIZATION:
        split_sums(planned.module, several=graph in IMAGES)
    lora_op.join(planned.module)
    with torch.no_grad():
        expected = planned.module(**planned.inputs)
    # The exporter wants constants on the device of the inputs and reads them: weights that are never touched, not meta.
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
    """A dynamic axis: the batch, or a side in units of the size multiple, so that the exporter need not find that out
    (it would trace twice)."""
    name, _, divisor = label.partition("/")
    if name == "batch":
        return torch.export.Dim(name)
    factor, unit = multiple // int(divisor or 1), torch.export.Dim(f"{name}_units")
    return unit if factor == 1 else factor * unit


def _name_interface(graph: ir.Graph, planned: GraphPlan, expected: Sequence[tuple[int, ...]]) -> None:
    """Give inputs and outputs the contract's names and dimension labels."""
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
    """The label of an output size, from an input's size along the same axis and its label: "height" -> "height/8"."""
    name, _, divisor = label.partition("/")
    if size == known:
        return label
    ratio = Fraction(int(divisor or 1) * known, size)
    return name if ratio == 1 else f"{name}/{ratio}"


def _externalise(graph: ir.Graph, inputs: list[str], weights: list[str], weights_path: Path) -> None:
    """Turn the weight inputs into initializers whose data lies in the safetensors file."""
    stored = tensor_spans(weights_path)
    values = list(graph.inputs)[len(inputs) :]
    if len(values) != len(weights):
        raise GraphError(f"{len(weights)} weights were traced as {len(values)} inputs")
    del graph.inputs[len(inputs) :]
    for name, value in zip((_plain(name) for name in weights), values, strict=True):
        if not list(value.uses()):
            continue
        if name not in stored:
            raise GraphError(f"{weights_path} holds no weight {name} of the traced graph: build the bundle anew")
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
    """A planned module's tensors under the names that its graph gives them."""
    return {_plain(name): tensor for name, tensor in _state(module).items()}


def _plain(name: str) -> str:
    """A parameter's name without what wrapping (peft, the one-step UNet, the flat encoder) put into it."""
    for prefix in ("part.", "unet."):
        name = name.removeprefix(prefix)
    return name.replace(".base_layer.", ".").replace(f".{clora.ADAPTER}.", ".")
