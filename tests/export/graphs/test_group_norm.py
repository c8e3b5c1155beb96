"""GroupNorm as means of means, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dod_runtime.bundle.safetensors import write_tensors
from export.graphs.components import GraphPlan, meta_copy
from export.graphs.trace import OPSETS, trace_planned
from tests.dod.small_model import normal, snr_db

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("groups", "shape"), [(1, (1, 8, 256, 192)), (1, (1, 8, 40000)), (2, (2, 8, 512, 512)), (4, (1, 8, 200000))]
)
def test_a_large_mean_costs_no_precision(tmp_path: Path, groups: int, shape: tuple[int, ...]) -> None:
    """A large mean costs no precision; a single sum loses 20 dB and more."""
    norm = nn.GroupNorm(groups, 8, eps=1e-6)
    norm.load_state_dict({"weight": normal(8, seed=1), "bias": normal(8, seed=2)})
    signs = torch.tensor([25.0, -25.0]).repeat(4).view(8, *(1 for _ in shape[2:]))
    x = normal(*shape, seed=3) + signs
    stored = {name: value.detach().numpy() for name, value in norm.state_dict().items()}
    specs = {name: (value.dtype, value.shape) for name, value in stored.items()}
    write_tensors(tmp_path / "norm.safetensors", specs, stored.values())
    planned = GraphPlan(meta_copy(norm), {"input": torch.empty(shape, device="meta")}, {"input": {}}, ("y",), 1)
    trace_planned(planned, "encoder", tmp_path / "norm.onnx", tmp_path / "norm.safetensors", OPSETS["fp32"])
    assert type(norm) is nn.GroupNorm
    session = onnxruntime.InferenceSession(tmp_path / "norm.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": x.numpy()})[0]
    assert snr_db(norm.double()(x.double()).detach(), found) >= 118
