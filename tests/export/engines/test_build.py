"""Engines from a small real graph, on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.engines.build import EngineJob, TensorInfo, build_engine, build_engines
from export.engines.targets import TENSORRT, TENSORRT_RTX, Target, gpu_unavailable_reason
from export.errors import TargetError
from tests.export.small_graphs import PROFILE, THREE_GPUS, build_rtx, store_outside

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")

ROOT = Path(__file__).parents[3]


def test_one_engine_for_three_gpus(graph: Path, tmp_path: Path) -> None:
    record = build_rtx(graph, tmp_path / "new" / "block.engine")
    engine = (tmp_path / "new" / "block.engine").read_bytes()
    assert engine[4:8] == bytes(4) and engine[:4] == b"vtrt"
    assert record.bytes == len(engine) > 100_000
    assert record.target == "tensorrt_rtx" and record.version == tensorrt_rtx.__version__
    assert record.inputs == (TensorInfo("image", "float16", ("batch", 3, "height", "width")),)
    assert record.outputs == (TensorInfo("restored", "float16", (-1, 3, -1, -1)),)
    assert record.compute_capabilities == THREE_GPUS and record.gpu is None
    assert record.tf32 is False
    assert record.layers > 10 and record.seconds > 0
    assert record.peak_bytes is None or 50e6 < record.peak_bytes < 4e9
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["block.engine"]


def test_building_twice_gives_the_same_bytes(graph: Path, tmp_path: Path) -> None:
    build_rtx(graph, tmp_path / "first.engine")
    build_rtx(graph, tmp_path / "second.engine", ("12.0", "8.6", "8.9", "8.6"))
    assert (tmp_path / "first.engine").read_bytes() == (tmp_path / "second.engine").read_bytes()


@pytest.mark.parametrize("misaligned", [0, 1])
def test_weights_may_lie_in_a_safetensors_file(graph: Path, tmp_path: Path, misaligned: int) -> None:
    """As a bundle stores them: external data at an offset into a safetensors file beside the graph, aligned or not."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from safetensors.numpy import load_file

    (tmp_path / "outside").mkdir()
    outside = store_outside(graph, tmp_path / "outside", misaligned)
    assert load_file(tmp_path / "outside" / "block.safetensors")["conv.weight"].shape == (16, 3, 3, 3)
    build_rtx(graph, tmp_path / "inside.engine")
    build_rtx(outside, tmp_path / "outside.engine")
    assert (tmp_path / "inside.engine").read_bytes() == (tmp_path / "outside.engine").read_bytes()
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float16)
    one, other = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for path in (graph, outside)
    )
    np.testing.assert_array_equal(one, other)


def test_the_tensorrt_role_played_by_rtx(graph: Path, tmp_path: Path) -> None:
    """The adapter as it is for TensorRT: no compute capability named, the library's plain builder configuration."""
    role = Target("tensorrt", module="tensorrt_rtx", extra="tensorrt", built_on_gpu=True)
    record = build_engine(graph, tmp_path / "block.engine", target=role, profile=PROFILE)
    assert record.target == "tensorrt" and record.tf32 is False
    assert (record.gpu is None) == (gpu_unavailable_reason() is not None)
    with pytest.raises(TargetError, match="name no compute capabilities"):
        build_engine(graph, tmp_path / "b.engine", target=role, profile=PROFILE, compute_capabilities=["8.9"])


@pytest.mark.gpu
def test_tensorrt_on_its_gpu(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    record = build_engine(graph, tmp_path / "block.engine", target=TENSORRT, profile=PROFILE)
    assert record.gpu and len(record.compute_capabilities) == 1


def test_several_at_once(graph: Path, tmp_path: Path) -> None:
    jobs = [EngineJob(graph, tmp_path / f"{n}.engine", TENSORRT_RTX, PROFILE, ("8.9",)) for n in range(3)]
    records = dict(build_engines(jobs, workers=2))
    assert set(records) == set(jobs)
    assert len({job.engine_path.read_bytes() for job in jobs}) == 1


def test_as_a_script_of_export_from_anywhere(graph: Path, tmp_path: Path) -> None:
    """export/ first on the path, as for export/build_engines.py, another working directory, relative paths."""
    (tmp_path / "block.onnx").write_bytes(graph.read_bytes())
    command = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'export')!r}, {str(ROOT)!r}];"
        "from export.engines.build import build_engine; from export.engines.targets import TENSORRT_RTX;"
        f"build_engine('block.onnx', 'block.engine', target=TENSORRT_RTX, profile={PROFILE!r},"
        "compute_capabilities=['8.9'])"
    )
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "block.engine").stat().st_size > 100_000
