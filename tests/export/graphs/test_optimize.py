"""The reduced optimizer leaves graphs as tidy as the exporter's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from dod.model.dod import DOD
from export.graphs import trace
from export.graphs.components import GRAPHS
from export.graphs.optimize import tidy


@pytest.mark.parametrize("graph", ["mfm", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_graph_is_as_tidy_as_the_exporters_optimizer_leaves_it(
    model: DOD, graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimised: list[ir.Model] = []

    def both(raw: ir.Model) -> None:
        optimised.append(ir.serde.deserialize_model(ir.serde.serialize_model(raw)))
        optimizer.optimize(optimised[0])
        tidy(raw)

    monkeypatch.setattr(trace, "tidy", both)
    weights = tmp_path / f"{GRAPHS[graph]}.safetensors"
    trace.write_weights(model, model, GRAPHS[graph], weights)
    trace.trace(model, graph, tmp_path / "graph.onnx", weights, trace.OPSETS["fp32"])
    found = onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph
    wanted = Counter(node.op_type for node in optimised[0].graph)
    assert Counter(node.op_type for node in found.node) == wanted
