"""Engines from a small real graph on a machine without a GPU, and builds that fail: an error and no file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.engines import build as engines
from export.engines.build import EngineBuild, EngineJob, TensorInfo, build_engine, build_engines
from export.engines.targets import TENSORRT, TENSORRT_RTX, EngineTarget, gpu_unavailable_reason
from export.errors import EngineError, TargetError
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
    """External data at an aligned or unaligned offset into a safetensors file, as in a bundle."""
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


def test_tensorrts_configuration_with_rtx(graph: Path, tmp_path: Path) -> None:
    """TensorRT's configuration, without compute capabilities, in the other library."""
    role = EngineTarget("tensorrt", module="tensorrt_rtx", extra="tensorrt", built_on_gpu=True)
    record = build_engine(graph, tmp_path / "block.engine", target=role, profile=PROFILE)
    assert record.target == "tensorrt" and record.tf32 is False
    assert (record.gpu is None) == (gpu_unavailable_reason() is not None)
    with pytest.raises(TargetError, match="compute capabilities"):
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_engine_that_cannot_be_written(graph: Path, tmp_path: Path) -> None:
    job = EngineJob(graph, tmp_path / "block.engine", TENSORRT_RTX, PROFILE, THREE_GPUS)
    original = EngineBuild._start

    def full_disk(self: EngineBuild) -> subprocess.Popen[bytes]:
        self._partial.symlink_to("/dev/full")
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineBuild, "_start", full_disk)
        with pytest.raises(OSError, match="block.engine"), EngineBuild(job) as started:
            started.result()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL.*memory"),
        (
            "sys.stderr.write('what():  std::bad_alloc'); sys.stderr.flush(); os.abort()",
            "SIGABRT.*std::bad_alloc.*memory",
        ),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("print('{}'); sys.exit('words')", "code 1.*words"),
    ],
)
def test_a_child_that_dies(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    fake_builder(tmp_path / "fake.py", monkeypatch, program)
    with pytest.raises(EngineError, match=message):
        build_rtx(graph, tmp_path / "out" / "block.engine")
    assert not list((tmp_path / "out").iterdir())


def fake_builder(path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Path:
    """Replace the builder by a program that starts to write the engine and continues with `program`."""
    start = "import ctypes, json, os, pathlib, runpy, signal, sys, time\nrequest = json.loads(sys.argv[1])\n"
    path.write_text(f"{start}pathlib.Path(request['engine']).write_text('incomplete')\n{program}\n")
    monkeypatch.setattr(engines, "BUILDER", path)
    return path


def test_a_build_without_memory(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's binding turns std::bad_alloc into MemoryError."""
    start = f"main = runpy.run_path({str(engines.BUILDER)!r})['main']"
    raises = "main.__globals__['build'] = lambda request: [None] * (1 << 62)"
    fake_builder(tmp_path / "fake.py", monkeypatch, f"{start}\n{raises}\nsys.exit(main())")
    with pytest.raises(EngineError, match=r"std::bad_alloc.*memory"):
        build_rtx(graph, tmp_path / "out" / "block.engine")


def test_a_build_without_end(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_builder(tmp_path / "fake.py", monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(engines, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(EngineError, match=r"0\.5 s"):
        build_rtx(graph, tmp_path / "out" / "block.engine")
    job = EngineJob(graph, tmp_path / "out" / "block.engine", TENSORRT_RTX, PROFILE, THREE_GPUS)
    with pytest.raises(EngineError, match=r"0\.5 s"):
        list(build_engines([job]))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death reaches a child on Linux only")
def test_the_child_ends_with_its_parent(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """The child ends on Ctrl-C that only the parent receives, and when the parent is killed."""
    follow = f"runpy.run_path({str(engines.BUILDER)!r})['_end_with_parent'](request['parent'])"
    report = f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))"
    slow = fake_builder(tmp_path / "slow.py", monkeypatch, f"{follow}\n{report}\ntime.sleep(60)")
    command = (
        "import pathlib; from export.engines import build; from export.engines.targets import TENSORRT_RTX;"
        f"build.BUILDER = pathlib.Path({str(slow)!r});"
        f"build.build_engine({str(graph)!r}, {str(tmp_path / 'out' / 'b.engine')!r},"
        f"target=TENSORRT_RTX, profile={PROFILE!r}, compute_capabilities=['8.9'])"
    )
    with subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        parent.send_signal(sent)
        parent.wait(60)
    child = Path("/proc", (tmp_path / "pid").read_text())
    wait_for(lambda: not child.exists() or "\nState:\tZ" in (child / "status").read_text())
    if sent == signal.SIGINT:
        assert not list((tmp_path / "out").iterdir())


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.02)


@pytest.mark.slow
def test_engines_that_finish_with_a_failure_are_kept(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both builds end before the next poll; the failing one comes first."""
    answer = EngineBuild._answer

    def failing(self: EngineBuild) -> dict[str, Any]:
        if self.job.engine_path.stem == "bad":
            raise EngineError("no engine")
        return answer(self)

    monkeypatch.setattr(EngineBuild, "_answer", failing)
    monkeypatch.setattr(engines, "POLL_SECONDS", 15)
    bad, good = (EngineJob(graph, tmp_path / f"{n}.engine", TENSORRT_RTX, PROFILE, ("8.9",)) for n in ("bad", "good"))
    kept = []
    with pytest.raises(EngineError, match="no engine"):
        for job, _ in build_engines([bad, good], workers=2):
            kept.append(job)
    assert kept == [good] and good.engine_path.is_file() and not bad.engine_path.exists()


def test_builders_share_the_memory_limit(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[EngineBuild] = []

    class Watched(EngineBuild):
        def _start(self) -> subprocess.Popen[bytes]:
            running = [build for build in started if not build.done]
            assert not running or self.job.memory + sum(build.job.memory for build in running) <= 7
            started.append(self)
            return super()._start()

    monkeypatch.setattr(engines, "EngineBuild", Watched)
    memory = {"first": 6, "second": 6, "small": 1, "large": 9}
    jobs = [
        EngineJob(graph, tmp_path / f"{name}.engine", TENSORRT_RTX, PROFILE, ("8.9",), memory=size)
        for name, size in memory.items()
    ]
    built = {job.engine_path.stem for job, _ in build_engines(jobs, workers=2, memory=7)}
    assert [build.job.engine_path.stem for build in started] == ["first", "small", "second", "large"]
    assert built == memory.keys()


def test_the_first_failure_ends_the_others(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = "sys.exit('words') if 'bad' in request['engine'] else time.sleep(600)"
    fake_builder(tmp_path / "fake.py", monkeypatch, fails)
    jobs = [EngineJob(graph, tmp_path / "out" / n, TENSORRT_RTX, PROFILE, ("8.9",)) for n in ("slow", "bad", "later")]
    with pytest.raises(EngineError, match="bad"):
        list(build_engines(jobs, workers=2))
    assert not list((tmp_path / "out").iterdir())
