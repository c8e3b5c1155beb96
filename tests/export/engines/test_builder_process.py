"""What a broken graph, a wrong profile, a full disk and a child process that dies give: an error, and no file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from export.engines import build as engines
from export.engines.build import EngineBuild, EngineJob, build_engine, build_engines
from export.engines.targets import TENSORRT_RTX
from export.errors import EngineError, TargetError
from tests.export.small_graphs import PROFILE, THREE_GPUS, build_rtx, store_outside, tiny_graph

pytest.importorskip("tensorrt_rtx")

ROOT = Path(__file__).parents[3]


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
def test_bad_profiles(graph: Path, tmp_path: Path, profile: engines.Profile, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build_engine(
            graph, tmp_path / "b.engine", target=TENSORRT_RTX, profile=profile, compute_capabilities=THREE_GPUS
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Add", ["image", "half"], ["restored"], name="sum"), r"node sum \(Add\).*Float and Half"),
        (helper.make_node("Odd", ["image"], ["restored"], name="odd", domain="elsewhere"), r"node odd \(Odd\)"),
        (
            helper.make_node("Resize", ["image", "", "scales"], ["restored"], name="up", mode="linear", antialias=1),
            r"node up \(Resize\).*Antialiasing is not supported",
        ),
    ],
)
def test_a_graph_that_does_not_parse(tmp_path: Path, node: onnx.NodeProto, message: str) -> None:
    with pytest.raises(EngineError, match=message) as failure:
        build_rtx(tiny_graph(tmp_path / "tiny.onnx", node), tmp_path / "tiny.engine")
    assert "\n" not in str(failure.value) and failure.value.log
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_weights_to_be_exchanged_that_are_none(graph: Path, tmp_path: Path) -> None:
    job = EngineJob(graph, tmp_path / "out" / "b.engine", TENSORRT_RTX, PROFILE, ("8.9",), ("conv.wieght",))
    with pytest.raises(EngineError, match=r"the graph holds no weights 'conv\.wieght' that could be exchanged"):
        list(build_engines([job]))
    assert not list((tmp_path / "out").iterdir())


def test_a_graph_that_is_none(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such ONNX graph"):
        build_rtx(tmp_path / "absent.onnx", tmp_path / "absent.engine")
    for junk, message in ((b"no graph at all " * 10, "Failed to parse the ONNX model"), (b"", "holds no graph")):
        (tmp_path / "junk.onnx").write_bytes(junk)
        with pytest.raises(EngineError, match=message):
            build_rtx(tmp_path / "junk.onnx", tmp_path / "junk.engine")
    lost = store_outside(graph, tmp_path, 0)
    (tmp_path / "block.safetensors").unlink()
    with pytest.raises(EngineError, match=r"conv.weight.*Failed to open file.*block.safetensors"):
        build_rtx(lost, tmp_path / "lost.engine")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_engine_that_cannot_be_written(graph: Path, tmp_path: Path) -> None:
    job = EngineJob(graph, tmp_path / "block.engine", TENSORRT_RTX, PROFILE, THREE_GPUS)
    original = EngineBuild._start

    def full_disk(self: EngineBuild) -> subprocess.Popen[bytes]:
        self._partial.symlink_to("/dev/full")
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineBuild, "_start", full_disk)
        with pytest.raises(OSError, match="No space left on device"), EngineBuild(job) as started:
            started.result()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL; it said nothing: if memory ran out"),
        (
            "sys.stderr.write('what():  std::bad_alloc'); sys.stderr.flush(); os.abort()",
            "SIGABRT; .*std::bad_alloc: if memory ran out",
        ),
        ("ctypes.string_at(0)", "ended by SIGSEGV"),
        ("print('{}'); sys.exit('words')", "ended with exit code 1; its last words: words"),
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
    """Put a program in the builder's place that begins to write the engine and goes on with `program`."""
    start = "import ctypes, json, os, pathlib, runpy, signal, sys, time\nrequest = json.loads(sys.argv[1])\n"
    path.write_text(f"{start}pathlib.Path(request['engine']).write_text('half')\n{program}\n")
    monkeypatch.setattr(engines, "BUILDER", path)
    return path


def test_a_build_without_memory(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """std::bad_alloc, as the library's binding hands it on."""
    start = f"main = runpy.run_path({str(engines.BUILDER)!r})['main']"
    raises = "main.__globals__['build'] = lambda request: [None] * (1 << 62)"
    fake_builder(tmp_path / "fake.py", monkeypatch, f"{start}\n{raises}\nsys.exit(main())")
    with pytest.raises(EngineError, match=r"std::bad_alloc\): if memory ran out, free some"):
        build_rtx(graph, tmp_path / "out" / "block.engine")


def test_a_build_without_end(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_builder(tmp_path / "fake.py", monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(engines, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(EngineError, match=r"did not end within 0\.5 s"):
        build_rtx(graph, tmp_path / "out" / "block.engine")
    job = EngineJob(graph, tmp_path / "out" / "block.engine", TENSORRT_RTX, PROFILE, THREE_GPUS)
    with pytest.raises(EngineError, match=r"did not end within 0\.5 s"):
        list(build_engines([job]))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death reaches a child on Linux only")
def test_the_child_ends_with_its_parent(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """Ctrl-C that only the parent hears, and a parent that is killed."""
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
        parent.wait(10)
    child = Path("/proc", (tmp_path / "pid").read_text())
    wait_for(lambda: not child.exists() or "\nState:\tZ" in (child / "status").read_text())
    if sent == signal.SIGINT:
        assert not list((tmp_path / "out").iterdir())


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_what_is_done_beside_a_failure_is_kept(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both end before anybody looks, the one that fails first in order."""
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


def test_builders_share_the_memory_that_there_is(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[EngineBuild] = []

    class Watched(EngineBuild):
        def _start(self) -> subprocess.Popen[bytes]:
            under_way = [build for build in started if not build.done]
            assert not under_way or self.job.memory + sum(build.job.memory for build in under_way) <= 7
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
    fails = "sys.exit('words') if 'bad' in request['engine'] else time.sleep(60)"
    fake_builder(tmp_path / "fake.py", monkeypatch, fails)
    jobs = [EngineJob(graph, tmp_path / "out" / n, TENSORRT_RTX, PROFILE, ("8.9",)) for n in ("slow", "bad", "later")]
    start = time.monotonic()
    with pytest.raises(EngineError, match="bad"):
        list(build_engines(jobs, workers=2))
    assert time.monotonic() - start < 20
    assert not list((tmp_path / "out").iterdir())
