"""ONNX to engines: TensorRT-RTX on any machine, TensorRT on the GPU it is for, each engine in a process of its own.

record = build_engine("unet.onnx", "unet.engine", target=TENSORRT_RTX, compute_capabilities=["8.6", "8.9"],
                      profile={"latent": ((1, 4, 32, 32), (1, 4, 64, 64), (4, 4, 128, 128))})
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.engines.targets import Target, gpu_here, validate_build
from export.errors import EngineError, ExportError
from export.reproducible import builder_environment

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""For each input its smallest, usual (the builder optimises for it) and largest shape."""

BUILDER = Path(__file__).with_name("worker.py")
POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 3600.0  # out of memory, the native builder has been seen to wait for itself for ever
LOG_LINES = 4
MEMORY_ADVICE = "if memory ran out, free some, lower the maximum size, or build fewer at once"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine. A size of the shape is its name where it has one, and -1 where it is open."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineRecord:
    """What is known of an engine that was built.

    seconds: in the builder alone; peak_bytes: of the child process, None where the system does not say; layers: of the
    parsed network; compute_capabilities: those it runs on (of the GPU it was built on, for `tensorrt`).
    """

    target: str
    version: str
    bytes: int
    seconds: float
    peak_bytes: int | None
    layers: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    tf32: bool


@dataclass(frozen=True)
class EngineJob:
    """One engine to build: from which graph, where to, for what.

    refittable: the weights, by the graph's names, that are exchanged in it later; the builders need a GPU for that.
    memory: bytes that building it takes, where that is known.
    """

    onnx_path: Path
    engine_path: Path
    target: Target
    profile: Profile = field(hash=False)
    compute_capabilities: tuple[str, ...] = ()
    refittable: tuple[str, ...] = ()
    memory: int = 0


def build_engine(
    onnx_path: str | os.PathLike[str],
    engine_path: str | os.PathLike[str],
    *,
    target: Target,
    profile: Profile,
    compute_capabilities: Sequence[str] = (),
) -> EngineRecord:
    """Build one engine and wait for it. The file appears at engine_path whole, or not at all.

    onnx_path: read from the disk with its external data beside it; its types decide the precision. Raises TargetError
    for a capability or profile that cannot be, EngineError with the library's own words, OSError where the file cannot
    be read or written.
    """
    job = EngineJob(Path(onnx_path), Path(engine_path), target, profile, tuple(compute_capabilities))
    with EngineBuild(job) as build:
        return build.result()


def build_engines(
    jobs: Sequence[EngineJob], workers: int = 2, memory: float = math.inf
) -> Iterator[tuple[EngineJob, EngineRecord]]:
    """Build several, at most `workers` at once, and yield each as it is done.

    memory: bytes that those under way may take together; one that takes more is built by itself. The next is the first
    that there is room for. The first failure ends those under way; what is done by then is yielded before it is raised.
    """
    waiting = list(jobs)
    running: list[EngineBuild] = []
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < workers:
                room = memory - sum(build.job.memory for build in running)
                fitting = (job for job in waiting if job.memory <= room)
                job = next(fitting, None if running else waiting[0])
                if job is None:
                    break
                waiting.remove(job)
                running.append(stack.enter_context(EngineBuild(job)))
            done = [build for build in running if build.done]
            if not done:
                time.sleep(POLL_SECONDS)
            failure: Exception | None = None
            for build in done:
                running.remove(build)
                try:
                    record = build.result()
                except (ExportError, OSError) as error:
                    failure = failure or error
                else:
                    yield build.job, record
            if failure is not None:
                raise failure


class EngineBuild:
    """A build under way. Leaving its `with` block, for whatever reason, ends the child and what it had written."""

    def __init__(self, job: EngineJob) -> None:
        self.job = job
        self.capabilities = validate_build(job.target, job.onnx_path, job.profile, job.compute_capabilities)
        folder = job.engine_path.absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        self._partial = folder / f".{job.engine_path.name}.{uuid.uuid4().hex[:8]}.partial"
        self._cleanup = ExitStack()
        self._cleanup.callback(self._partial.unlink, missing_ok=True)
        self._reply = self._cleanup.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._log = self._cleanup.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._process = self._start()
        self._deadline = time.monotonic() + TIMEOUT_SECONDS
        self._cleanup.callback(self._process.wait)
        self._cleanup.callback(self._process.kill)

    def _start(self) -> subprocess.Popen[bytes]:
        request = {
            "module": self.job.target.module,
            "onnx": str(self.job.onnx_path.absolute()),
            "engine": str(self._partial),
            "profile": dict(self.job.profile),
            "compute_capabilities": self.capabilities,
            "refittable": self.job.refittable,
            "parent": f"{os.getpid():010}",  # of one length, see export.reproducible
        }
        rtx = "1" if self.job.target.module == "tensorrt_rtx" else "0"
        return subprocess.Popen(
            [sys.executable, "-P", str(BUILDER), json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=self._reply,
            stderr=self._log,
            env=builder_environment() | {"POLYGRAPHY_USE_TENSORRT_RTX": rtx},
        )

    def __enter__(self) -> EngineBuild:
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def done(self) -> bool:
        """Whether `result` need not wait: the child has ended, well or not, or its time is up."""
        return self._process.poll() is not None or time.monotonic() > self._deadline

    def result(self) -> EngineRecord:
        """Wait for the child, put the engine in its place, return its record. Raises EngineError, OSError."""
        built = self._answer()
        os.replace(self._partial, self.job.engine_path)
        gpu = gpu_here() if self.job.target.built_on_gpu or self.job.refittable else None
        return EngineRecord(
            target=self.job.target.name,
            inputs=_tensors(built.pop("inputs")),
            outputs=_tensors(built.pop("outputs")),
            compute_capabilities=(gpu.compute_capability,) if gpu else self.capabilities,
            gpu=gpu.name if gpu else None,
            **built,
        )

    def _answer(self) -> dict[str, Any]:
        """The child's account of the engine it built. Raises what the child's end amounts to."""
        try:
            code = self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        self._reply.seek(0)
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")
        try:
            answer: dict[str, Any] = json.loads(self._reply.read())
        except ValueError:
            answer = {}
        if code == 0 and "built" in answer:
            return answer["built"]
        if answer.get("errno"):
            raise OSError(answer["errno"], answer["reason"], str(self.job.engine_path))
        why = _with_errors(answer["refused"], log) if "refused" in answer else _end(code, log)
        raise EngineError(
            f"{self.job.target.name} could not build {self.job.engine_path.name} from {self.job.onnx_path}: {why}", log
        )


def _tensors(rows: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(row["name"], row["dtype"], tuple(row["shape"])) for row in rows)


def _with_errors(reason: str, log: str) -> str:
    """The reason, with the library's errors where it has said more than the reason does, and what to do where known."""
    errors = [line[3:].strip() for line in log.splitlines() if line.startswith("[E]")]
    news = [line for line in errors if "cudaError 35" not in line and "ModelImporter" not in line]
    words = "; ".join([reason, *(line for line in news[-LOG_LINES:] if line not in reason)])
    return f"{words}: {MEMORY_ADVICE}" if "bad_alloc" in words else words


def _end(code: int | None, log: str) -> str:
    """How a child that gave no answer came to its end, its last words, and what to do where known."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    words = f"its last words: {' | '.join(lines[-LOG_LINES:])}" if lines else "it said nothing"
    if code is None:
        return f"the build did not end within {TIMEOUT_SECONDS:g} s; {words}: {MEMORY_ADVICE}"
    if code >= 0:
        return f"the build process ended with exit code {code}; {words}"
    end = f"the build process was ended by {signal.Signals(-code).name}; {words}"
    return f"{end}: {MEMORY_ADVICE}" if -code == signal.SIGKILL or "bad_alloc" in log else end
