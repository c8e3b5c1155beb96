"""The builder program: a wrong profile, a broken graph or unknown weights give an error and no file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from export.engines.build import EngineJob, InputShapes, build_engine, build_engines
from export.engines.targets import TENSORRT_RTX
from export.errors import EngineError, TargetError
from tests.export.small_graphs import PROFILE, THREE_GPUS, build_rtx, store_outside, tiny_graph

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    ("profile", "error", "message"),
    [
        ({}, EngineError, r"the graph's inputs are \['image'\]"),
        ({"image": ((1, 3, 64, 64), (1, 3, 32, 32), (1, 3, 128, 128))}, TargetError, "min <= opt <= max"),
        ({"image": ((1, 3, 32), (1, 3, 64, 64), (1, 3, 128, 128))}, TargetError, "of one rank"),
        ({"image": ((1, 3, 32),) * 3}, EngineError, r"\[1, 3, 32\] does not fit the input image"),
        ({"image": ((1, 4, 32, 32),) * 3}, EngineError, r"does not fit the input image \['batch', 3"),
    ],
)
def test_bad_profiles(graph: Path, tmp_path: Path, profile: InputShapes, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build_engine(
            graph, tmp_path / "b.engine", target=TENSORRT_RTX, profile=profile, compute_capabilities=THREE_GPUS
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Add", ["image", "one"], ["restored"], name="sum"), r"node sum \(Add\)"),
        (helper.make_node("Odd", ["image"], ["restored"], name="odd", domain="elsewhere"), r"node odd \(Odd\)"),
        (
            helper.make_node("Resize", ["image", "", "scales"], ["restored"], name="up", mode="linear", antialias=1),
            r"node up \(Resize\)",
        ),
    ],
)
def test_a_graph_that_does_not_parse(tmp_path: Path, node: onnx.NodeProto, message: str) -> None:
    with pytest.raises(EngineError, match=message) as failure:
        build_rtx(tiny_graph(tmp_path / "tiny.onnx", node), tmp_path / "tiny.engine")
    assert "\n" not in str(failure.value) and failure.value.log
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_unknown_weights_to_refit_are_refused(graph: Path, tmp_path: Path) -> None:
    job = EngineJob(graph, tmp_path / "out" / "b.engine", TENSORRT_RTX, PROFILE, ("8.9",), ("conv.wieght",))
    with pytest.raises(EngineError, match=r"'conv\.wieght'"):
        list(build_engines([job]))
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_or_invalid_graph(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.onnx"):
        build_rtx(tmp_path / "absent.onnx", tmp_path / "absent.engine")
    for junk in (b"no graph at all " * 10, b""):
        (tmp_path / "junk.onnx").write_bytes(junk)
        with pytest.raises(EngineError, match="junk.onnx"):
            build_rtx(tmp_path / "junk.onnx", tmp_path / "junk.engine")
    lost = store_outside(graph, tmp_path, 0)
    (tmp_path / "block.safetensors").unlink()
    with pytest.raises(EngineError, match="block.safetensors"):
        build_rtx(lost, tmp_path / "lost.engine")
