"""Small real graphs for the tests of the engine builder, and their shape profile."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from export.engines.build import EngineRecord, build_engine
from export.engines.targets import TENSORRT_RTX

PROFILE = {"image": ((1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 128, 128))}
THREE_GPUS = ("8.6", "8.9", "12.0")


class Block(nn.Module):
    """The types of layers of a diffusion UNet. image: [B, 3, H, W] -> [B, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.norm(self.conv(image)))
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unsqueeze(1).chunk(3, -1)
        attended = functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.out(x + attended.transpose(1, 2).reshape(x.shape))


def export_block(path: Path) -> Path:
    """Export a `Block` in fp16 at opset 23 with dynamic batch, height and width, and weights in the graph."""
    torch.manual_seed(0)
    torch.onnx.export(
        Block().half().eval(),
        (torch.zeros(2, 3, 24, 40, dtype=torch.half),),
        path,
        dynamo=True,
        external_data=False,
        opset_version=23,
        input_names=["image"],
        output_names=["restored"],
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
        verbose=False,
    )
    return path


def tiny_graph(path: Path, node: onnx.NodeProto) -> Path:
    """Write a graph of one node, from image (fp32) to restored, with the constants `one` (fp16) and `scales`."""
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT16, [1], [1.0]),
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    restored = helper.make_tensor_value_info("restored", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "tiny", [image], [restored], constants),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)],
    )
    path.write_bytes(model.SerializeToString())
    return path


def store_outside(graph: Path, folder: Path, misaligned: int) -> Path:
    """Move the fp16 weights of a graph to block.safetensors. Its data start `misaligned` bytes off a multiple of 8."""
    model = onnx.load(graph)
    weights = [weight for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT16]
    arrays = [numpy_helper.to_array(weight) for weight in weights]
    ends = np.cumsum([array.nbytes for array in arrays]).tolist()
    spans = list(zip([0, *ends], ends, strict=False))
    header = json.dumps(
        {
            weight.name: {"dtype": "F16", "shape": array.shape, "data_offsets": span}
            for weight, array, span in zip(weights, arrays, spans, strict=True)
        }
    ).encode()
    header += b" " * ((misaligned - len(header)) % 8)
    data = b"".join(array.tobytes() for array in arrays)
    (folder / "block.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    for weight, (start, end) in zip(weights, spans, strict=True):
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        location = {"location": "block.safetensors", "offset": 8 + len(header) + start, "length": end - start}
        for key, value in location.items():
            weight.external_data.add(key=key, value=str(value))
    path = folder / graph.name
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(path, full_check=True)
    return path


def build_rtx(onnx_path: Path, engine_path: Path, capabilities: tuple[str, ...] = THREE_GPUS) -> EngineRecord:
    return build_engine(onnx_path, engine_path, target=TENSORRT_RTX, profile=PROFILE, compute_capabilities=capabilities)
