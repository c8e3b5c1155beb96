"""Build engines from ONNX graphs: TensorRT-RTX on any machine, TensorRT on its GPU, each engine in its own process."""

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

from export.engines.targets import EngineTarget, gpu_here, validate_build
from export.errors import EngineError, ExportError
from export.reproducible import builder_environment

__all__ = [
    "BUILDER",
    "EngineBuild",
    "EngineJob",
    "EngineRecord",
    "Shape",
    "InputShapes",
    "TensorInfo",
    "build_engine",
    "build_engines",
]

Shape = tuple[int, ...]
InputShapes = Mapping[str, tuple[Shape, Shape, Shape]]
"""Minimum, optimal and maximum shape of each input. The builder optimizes for the second."""

BUILDER = Path(__file__).with_name("builder_process.py")
"""Program that builds one engine."""
POLL_SECONDS = 0.05
"""Seconds between two looks at the running builds."""
TIMEOUT_SECONDS = 3600.0
"""Seconds after which a build is given up. Without memory, the native builder may wait for itself forever."""
LOG_LINES = 4
"""Lines of the builder's log that an error message quotes."""
MEMORY_ADVICE = "if memory ran out, free some, lower the maximum size, or build fewer at once"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine.

    Attributes:
        name: Name of the tensor.
        dtype: NumPy name of its type.
        shape: Sizes. A dynamic size is its name if it has one, else -1.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineRecord:
    """Facts about an engine that was built.

    Attributes:
        target: Name of its `EngineTarget`.
        version: Version of the library.
        bytes: Size of the engine.
        seconds: Time in the builder.
        peak_bytes: Peak memory of the build process, None if the system does not report it.
        layers: Layers of the parsed network.
        inputs: Inputs of the network.
        outputs: Outputs of the network.
        compute_capabilities: Capabilities that it runs on. For `tensorrt`, that of the GPU it was built on.
        gpu: Name of the GPU it was built on, None if it is bound to none.
        tf32: True if it may compute in TF32.
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
    """One engine to build.

    Attributes:
        onnx_path: The graph, with its external data beside it. Its types decide the precision.
        engine_path: File to write.
        target: Library to build for.
        profile: Shapes of the inputs.
        compute_capabilities: Capabilities to build for.
        refittable: Names of the weights that can be refitted later. The builders need a GPU for that.
        memory: Estimated bytes that the build takes, 0 if unknown.
    """

    onnx_path: Path
    engine_path: Path
    target: EngineTarget
    profile: InputShapes = field(hash=False)
    compute_capabilities: tuple[str, ...] = ()
    refittable: tuple[str, ...] = ()
    memory: int = 0


def build_engine(
    onnx_path: str | os.PathLike[str],
    engine_path: str | os.PathLike[str],
    *,
    target: EngineTarget,
    profile: InputShapes,
    compute_capabilities: Sequence[str] = (),
) -> EngineRecord:
    """Build one engine and wait for it. The file at `engine_path` is complete or absent.

    Args:
        onnx_path: The graph, with its external data beside it. Its types decide the precision.
        engine_path: File to write.
        target: Library to build for.
        profile: Minimum, optimal and maximum shape of each input.
        compute_capabilities: Capabilities to build for; none for a target that is built on its GPU.

    Returns:
        Facts about the engine.

    Raises:
        TargetError: If a capability or the profile is invalid.
        EngineError: If the library refuses the graph, with its own message.
        OSError: If a file cannot be read or written.

    Example:
        >>> from export.engines.targets import TENSORRT_RTX
        >>> record = build_engine(  # doctest: +SKIP
        ...     "unet.onnx",
        ...     "unet.engine",
        ...     target=TENSORRT_RTX,
        ...     compute_capabilities=["8.6", "8.9"],
        ...     profile={"latent": ((1, 4, 32, 32), (1, 4, 64, 64), (4, 4, 128, 128))},
        ... )
    """
    job = EngineJob(Path(onnx_path), Path(engine_path), target, profile, tuple(compute_capabilities))
    with EngineBuild(job) as build:
        return build.result()


def build_engines(
    jobs: Sequence[EngineJob], workers: int = 2, memory: float = math.inf
) -> Iterator[tuple[EngineJob, EngineRecord]]:
    """Build several engines in parallel.

    The next build to start is the first one that fits into the remaining memory. The first failure ends all running
    builds; those that finished by then are yielded before the exception is raised.

    Args:
        jobs: Engines to build.
        workers: Maximum number of builds at once.
        memory: Bytes that running builds may take together. A job that needs more runs alone.

    Yields:
        Each job and its record, as soon as it is done.

    Raises:
        TargetError: If a capability or a profile is invalid.
        EngineError: If the library refuses a graph.
        OSError: If a file cannot be read or written.
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
    """A running build. Leaving its `with` block ends the child process and removes its partial file.

    Args:
        job: The engine to build.
    """

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
        """Process id of the child."""
        return self._process.pid

    @property
    def done(self) -> bool:
        """True if `result` returns at once: the child has ended, or its time is up."""
        return self._process.poll() is not None or time.monotonic() > self._deadline

    def result(self) -> EngineRecord:
        """Wait for the child and move the engine to its place.

        Returns:
            Facts about the engine.

        Raises:
            EngineError: If the build failed or timed out.
            OSError: If the engine cannot be written.
        """
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
        """Return the child's reply; raise an exception if the build failed."""
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
        why = _with_errors(answer["refused"], log) if "refused" in answer else _exit_reason(code, log)
        raise EngineError(
            f"{self.job.target.name} could not build {self.job.engine_path.name} from {self.job.onnx_path}: {why}", log
        )


def _tensors(rows: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(row["name"], row["dtype"], tuple(row["shape"])) for row in rows)


def _with_errors(reason: str, log: str) -> str:
    """Return the reason, the errors of the library's log that add to it, and advice if memory ran out."""
    errors = [line[3:].strip() for line in log.splitlines() if line.startswith("[E]")]
    relevant = [line for line in errors if "cudaError 35" not in line and "ModelImporter" not in line]
    message = "; ".join([reason, *(line for line in relevant[-LOG_LINES:] if line not in reason)])
    return f"{message}: {MEMORY_ADVICE}" if "bad_alloc" in message else message


def _exit_reason(code: int | None, log: str) -> str:
    """Describe how a child without a reply ended, with the end of its log, and advice if memory may have run out."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    output = f"end of its log: {' | '.join(lines[-LOG_LINES:])}" if lines else "its log is empty"
    if code is None:
        return f"the build did not finish within {TIMEOUT_SECONDS:g} s; {output}: {MEMORY_ADVICE}"
    if code >= 0:
        return f"the build process exited with code {code}; {output}"
    end = f"the build process was killed by {signal.Signals(-code).name}; {output}"
    return f"{end}: {MEMORY_ADVICE}" if -code == signal.SIGKILL or "bad_alloc" in log else end
