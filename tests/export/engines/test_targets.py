"""Targets and compute capabilities: what can be built, and errors for what cannot."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from export.engines.targets import (
    CAPABILITIES,
    TENSORRT_RTX,
    EngineTarget,
    gpu_unavailable_reason,
    is_fp16,
    unavailable_reason,
)
from export.errors import TargetError
from tests.export.small_graphs import build_rtx, tiny_graph

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")


def test_reasons_for_unavailable_targets() -> None:
    assert unavailable_reason(TENSORRT_RTX) is None
    absent = EngineTarget("tensorrt", module="no_such_library", extra="tensorrt", built_on_gpu=True)
    reason = unavailable_reason(absent) or ""
    assert "no_such_library" in reason and ".[tensorrt]" in reason
    without_gpu = EngineTarget("tensorrt", module="tensorrt_rtx", extra="tensorrt", built_on_gpu=True)
    assert unavailable_reason(without_gpu) == gpu_unavailable_reason()


def test_the_capabilities_known_are_the_librarys() -> None:
    members = {name[2:] for name in tensorrt_rtx.ComputeCapability.__members__ if name.startswith("SM")}
    assert {capability.replace(".", "") for capability in CAPABILITIES} == members


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        ((), "compute capabilities"),
        (("8.6", "8.8"), r"'8.8'.*'8.\d'.*7.5, 8.0"),
        (("89",), "'89'.*'8.9'"),
        (("9.0",), "'9.0'"),
        (("8.6", "7.5"), "7.5.*fp16"),
    ],
)
def test_bad_capabilities(graph: Path, tmp_path: Path, capabilities: tuple[str, ...], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        build_rtx(graph, tmp_path / "block.engine", capabilities)
    assert not list(tmp_path.iterdir())


def test_graphs_in_fp16(graph: Path, tmp_path: Path) -> None:
    assert is_fp16(graph)
    single = onnx.load(tiny_graph(tmp_path / "single.onnx", helper.make_node("Relu", ["image"], ["restored"])))
    del single.graph.initializer[:]
    (tmp_path / "single.onnx").write_bytes(single.SerializeToString())
    assert not is_fp16(tmp_path / "single.onnx")
    assert build_rtx(tmp_path / "single.onnx", tmp_path / "single.engine", ("7.5",)).compute_capabilities == ("7.5",)
