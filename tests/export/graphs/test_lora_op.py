"""Layers with conditional LoRA as a single operator of a trace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from dod.model import clora
from dod_runtime.bundle.safetensors import write_tensors
from export.graphs import lora_op, trace
from export.graphs.components import GraphPlan, meta_copy
from export.graphs.trace import OPSETS, trace_planned
from tests.dod.small_model import normal, snr_db

onnxruntime = pytest.importorskip("onnxruntime")


class Layers(nn.Module):
    """All types of layers with conditional LoRA. x: [B, 3, H, W], modulation: [B, 4, 2, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.hooked, self.last = nn.Linear(6, 5, bias=False), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        with clora.modulated(modulation):
            x = self.wide(self.first(x))
            tokens = self.last(self.hooked(x.flatten(2).transpose(1, 2)))
            return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def test_a_joined_layer_becomes_the_nodes_of_its_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers()
    clora.inject(layers, ("first", "wide", "hooked", "last"), 2, 3.0, conditional=True)
    clora.number_layers([layers])
    for i, (_, layer) in enumerate(clora.adapted_layers(layers)):
        clora.factors(layer)[1].data = normal(*clora.factors(layer)[1].shape, seed=i)
    layers.get_submodule("hooked.base_layer").register_forward_hook(lambda *_: None)
    inputs = {"x": normal(2, 3, 32, 48, seed=8), "modulation": normal(2, 4, 2, 2, seed=9)}
    stored = {name: value.detach().numpy() for name, value in trace.named_weights(layers).items()}
    specs = {name: (value.dtype, value.shape) for name, value in stored.items()}
    write_tensors(tmp_path / "layers.safetensors", specs, stored.values())
    axes = {"x": {0: "batch", 2: "height", 3: "width"}, "modulation": {0: "batch"}}
    empty = {name: value.to("meta") for name, value in inputs.items()}
    join, nodes = lora_op.join, {}
    for joined in (True, False):
        planned = GraphPlan(meta_copy(layers), empty, axes, ("y",), 16)
        monkeypatch.setattr(lora_op, "join", join if joined else lambda module: None)
        trace_planned(planned, "layers", tmp_path / "layers.onnx", tmp_path / "layers.safetensors", OPSETS["fp32"])
        assert type(planned.module.get_submodule("last")) is (
            lora_op.JOINED[clora.CLoRALinear] if joined else clora.CLoRALinear
        )
        assert type(planned.module.get_submodule("hooked")) is clora.CLoRALinear
        nodes[joined] = Counter(node.op_type for node in onnx.load(tmp_path / "layers.onnx").graph.node)
        session = onnxruntime.InferenceSession(tmp_path / "layers.onnx", providers=["CPUExecutionProvider"])
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        assert snr_db(layers(**inputs).detach(), found) >= 110
    assert nodes[True] == nodes[False]
