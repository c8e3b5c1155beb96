"""ONNX graphs of the toy bundle. Their weights are external data in safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

RANK = 4
LAYERS = 2
SCALE = 0.5


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], name=output, **attributes)


def _encoder_nodes() -> list[onnx.NodeProto]:
    nodes = [_node("Conv", ["x", "conv_in.weight", "conv_in.bias"], "z", strides=[8, 8])]
    for i in range(4):
        nodes.append(_node("Conv", ["x", f"skip_{i}.weight"], f"skip_{i}", strides=[1 << i] * 2))
    return nodes


def _decoder_nodes() -> list[onnx.NodeProto]:
    nodes = [_node("ConvTranspose", ["z", "conv_out.weight", "conv_out.bias"], "sum_0", strides=[8, 8])]
    for i in range(4):
        nodes.append(
            _node("ConvTranspose", [f"skip_{i}", f"skip_{i}.weight"], f"detail_{i}", strides=[1 << i] * 2),
        )
        nodes.append(_node("Add", [f"sum_{i}", f"detail_{i}"], f"sum_{i + 1}" if i < 3 else "y"))
    return nodes


def _mfm_nodes() -> list[onnx.NodeProto]:
    return [
        _node("ReduceMean", ["x", "mean_axes"], "c", keepdims=0),
        _node("MatMul", ["c", "map.weight"], "mapped"),
        _node("Add", ["mapped", "map.bias"], "shifted"),
        _node("Reshape", ["shifted", "modulation_shape"], "m"),
    ]


def _branch(layer: str, source: str, index: int, shape: str, convolution: bool) -> list[onnx.NodeProto]:
    """Return the nodes of a conditional layer's branch, Eq. (3)-(4): scale B (gamma * A x + beta)."""

    def times(tensor: str, weight: str, output: str, **attributes: Any) -> list[onnx.NodeProto]:
        if convolution:
            return [_node("ConvTranspose" if attributes else "Conv", [tensor, weight], output, **attributes)]
        return [
            _node("Transpose", [weight], f"{output}_t", perm=[1, 0]),
            _node("MatMul", [tensor, f"{output}_t"], output),
        ]

    nodes = times(source, f"{layer}.lora_A.weight", f"{layer}_a", **({"pads": [1] * 4} if convolution else {}))
    for part, name in enumerate(("gamma", "beta")):
        nodes.append(_node("Gather", ["m", f"index_{index}"], f"{layer}_{name}_layer", axis=1))
        nodes.append(_node("Gather", [f"{layer}_{name}_layer", f"index_{part}"], f"{layer}_{name}_flat", axis=1))
        nodes.append(_node("Reshape", [f"{layer}_{name}_flat", shape], f"{layer}_{name}"))
    nodes.append(_node("Mul", [f"{layer}_a", f"{layer}_gamma"], f"{layer}_scaled"))
    nodes.append(_node("Add", [f"{layer}_scaled", f"{layer}_beta"], f"{layer}_modulated"))
    nodes += times(f"{layer}_modulated", f"{layer}.lora_B.weight", f"{layer}_b")
    nodes.append(_node("Mul", [f"{layer}_b", "scale"], f"{layer}_branch"))
    nodes.append(_node("Add", [f"{layer}_base", f"{layer}_branch"], f"{layer}_sum"))
    return nodes


def _unet_nodes(dynamic: bool) -> list[onnx.NodeProto]:
    end = "base" if not dynamic else "sum"
    nodes = [_node("ConvTranspose", ["z", "conv.weight", "conv.bias"], "conv_base", pads=[1] * 4)]
    nodes += _branch("conv", "z", 0, "shape_nchw", True) if dynamic else []
    nodes += [
        _node("Tanh", [f"conv_{end}"], "hidden"),
        _node("Transpose", ["hidden"], "channels_last", perm=[0, 2, 3, 1]),
        _node("Transpose", ["proj.weight"], "proj_t", perm=[1, 0]),
        _node("MatMul", ["channels_last", "proj_t"], "proj_product"),
        _node("Add", ["proj_product", "proj.bias"], "proj_base"),
    ]
    nodes += _branch("proj", "channels_last", 1, "shape_nhwc", False) if dynamic else []
    return [
        *nodes,
        _node("Transpose", [f"proj_{end}"], "channels_first", perm=[0, 3, 1, 2]),
        _node("Conv", ["channels_first", "out.weight", "out.bias"], "residual"),
        _node("Add", ["z", "residual"], "y"),
    ]


def _gate_nodes() -> list[onnx.NodeProto]:
    return [
        _node("ReduceMean", ["x", "all_axes"], "brightness", keepdims=0),
        _node("Mul", ["brightness", "steep"], "logit"),
        _node("Sigmoid", ["logit"], "flat_share"),
        _node("Reshape", ["flat_share", "shape_share"], "s"),
        _node("MatMul", ["c", "gains.weight"], "g"),
    ]


def _gated_decoder_nodes() -> list[onnx.NodeProto]:
    """Return the nodes of a decoder whose result y is blended: y + share (degraded + sum of gains - y)."""
    return [
        *_decoder_nodes(),
        _node("ReduceSum", ["g", "gain_axes"], "gain", keepdims=0),
        _node("Reshape", ["gain", "shape_image"], "added"),
        _node("Reshape", ["s", "shape_image"], "blend"),
        _node("Add", ["d", "added"], "sharpened"),
        _node("Sub", ["sharpened", "y"], "difference"),
        _node("Mul", ["blend", "difference"], "passed"),
        _node("Add", ["y", "passed"], "blended"),
    ]


NODES = {
    "gate": _gate_nodes(),
    "gated_decoder": _gated_decoder_nodes(),
    "mfm": _mfm_nodes(),
    "encoder": _encoder_nodes(),
    "unet_dynamic": _unet_nodes(True),
    "unet_merged": _unet_nodes(False),
    "decoder": _decoder_nodes(),
}
INNER = {
    "gate": {"crops": "x", "condition": "c", "share": "s", "gains": "g"},
    "gated_decoder": {"latent_restored": "z", "degraded": "d", "share": "s", "gains": "g", "image": "blended"},
    "mfm": {"crops": "x", "condition": "c", "modulation": "m"},
    "encoder": {"image": "x", "latent": "z"},
    "unet_dynamic": {"latent": "z", "modulation": "m", "latent_restored": "y"},
    "unet_merged": {"latent": "z", "latent_restored": "y"},
    "decoder": {"latent_restored": "z", "image": "y"},
}
"""Names of inputs and outputs inside each graph. They differ from the outer names so that a cast fits between."""
CONSTANTS = {
    "mean_axes": np.array([1, 3, 4], np.int64),
    "all_axes": np.array([1, 2, 3, 4], np.int64),
    "gain_axes": np.array([1], np.int64),
    "shape_share": np.array([-1, 1], np.int64),
    "shape_image": np.array([-1, 1, 1, 1], np.int64),
    "steep": np.array(8, np.float32),
    "modulation_shape": np.array([-1, LAYERS, 2, RANK], np.int64),
    "shape_nchw": np.array([-1, RANK, 1, 1], np.int64),
    "shape_nhwc": np.array([-1, 1, 1, RANK], np.int64),
    "index_0": np.array(0, np.int64),
    "index_1": np.array(1, np.int64),
}


def _external(path: Path) -> dict[str, TensorProto]:
    """Return an initializer for each tensor of a safetensors file, with its data left in the file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        begin, end = entry["data_offsets"]
        kind = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}[entry["dtype"]]
        tensor = TensorProto(name=name, data_type=kind, dims=entry["shape"], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", path.name), ("offset", 8 + length + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))
        found[name] = tensor
    return found


def toy_graph(component: str, precision: str, weights: Path, spec: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the graph of a component. fp16 graphs cast inputs and outputs that are float32.

    Args:
        component: name of the component.
        precision: fp32 or fp16.
        weights: safetensors file beside the graph.
        spec: entry of the component in `components` of the manifest.
    """
    gated = any(entry["name"] == "share" for entry in spec["inputs"])
    kind_of = f"gated_{component}" if gated else component
    nodes, inner = list(NODES[kind_of]), INNER[kind_of]
    fp16 = precision == "fp16" and component not in ("mfm", "gate")
    before, after = [], []
    for part, casts in (("inputs", before), ("outputs", after)):
        for entry in spec[part]:
            name, kind = entry["name"], "Identity"
            if name in inner:
                ends = [name, inner[name]] if part == "inputs" else [inner[name], name]
                to = TensorProto.FLOAT16 if fp16 and part == "inputs" else TensorProto.FLOAT
                kind, attributes = ("Cast", {"to": to}) if fp16 else ("Identity", {})
                casts.append(helper.make_node(kind, ends[:1], ends[1:], **attributes))
    nodes = [*before, *nodes, *after]
    used = {name for node in nodes for name in node.input}
    scale = np.array(SCALE, np.float16 if fp16 else np.float32)
    constants = [onnx.numpy_helper.from_array(v, k) for k, v in {**CONSTANTS, "scale": scale}.items() if k in used]
    initializers = [tensor for name, tensor in _external(weights).items() if name in used]

    def info(entry: Mapping[str, Any]) -> onnx.ValueInfoProto:
        dtype = entry["dtype"] if isinstance(entry["dtype"], str) else entry["dtype"][precision]
        kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
        return helper.make_tensor_value_info(entry["name"], kind, entry["shape"])

    inputs, outputs = ([info(entry) for entry in spec[part]] for part in ("inputs", "outputs"))
    graph = helper.make_graph(nodes, component, inputs, outputs, [*initializers, *constants])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
