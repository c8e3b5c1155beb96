"""The runs of one backend compared with the reference, in a process of their own.

ONNX Runtime and OpenVINO do not release all of their memory in a process that held a PyTorch model before; a process
releases everything when it ends. This module does not import torch, so that the process stays small.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dod_runtime.backends import open_backend
from dod_runtime.backends.base import BackendOptions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.safetensors import read_tensors
from dod_runtime.bundle.schema import Manifest
from export.errors import ParityError
from export.memory import release_memory
from export.parity.compare import ParityResult, compare_output
from export.parity.runs import ParityRun, ParityStep, Values
from export.parity.sequence import ComponentRunner, EncoderCache, component_inputs, run_pipeline, write_values

__all__ = ["CheckedRun", "ReferenceStore", "bundle_process", "check_runs"]

MAIN_OUTPUT = {"mfm": "modulation", "gate": "gains", "encoder": "latent", "decoder": "image"}
"""Output of a component that is compared. A UNet's is `latent_restored`."""
IMAGE_COMPONENTS = ("mfm", "encoder")
"""Components whose inputs are the image itself: their outputs in the pipeline are those in isolation too."""


@dataclass(frozen=True)
class CheckedRun:
    """A run that was compared in one step.

    Attributes:
        step: Name of the step.
        sample: Name of the sample.
        path: `auto` or a condition.
        results: One result for the pipeline, and one for each isolated component.
        restored: The restored image [1, 3, H, W], float32.
    """

    step: str
    sample: str
    path: str
    results: list[ParityResult]
    restored: np.ndarray


@dataclass
class ReferenceStore:
    """Files with the reference's values of each run. With an image's skips they are too large to stay in memory.

    Attributes:
        folder: Folder of the files.
        files: File of each (sample, path).
    """

    folder: Path
    files: dict[tuple[str, str], Path] = field(default_factory=dict)

    def save(self, run: ParityRun, values: Values) -> None:
        """Write the values of a run.

        Args:
            run: The run.
            values: Its values by name.
        """
        path = self.folder / f"{len(self.files)}.safetensors"
        write_values(path, values)
        self.files[run.sample.name, run.path] = path

    def load(self, run: ParityRun) -> dict[str, np.ndarray]:
        """Map the values of a run into memory.

        Args:
            run: A run that was saved.

        Returns:
            Its values by name.
        """
        return read_tensors(self.files[run.sample.name, run.path])


@contextmanager
def bundle_process(
    step: ParityStep, bundle: Bundle, reference: ReferenceStore
) -> Iterator[Callable[[Sequence[ParityRun]], list[CheckedRun]]]:
    """Start a process for the backend of one step.

    Args:
        step: The step, with a backend.
        bundle: The bundle.
        reference: The reference's values.

    Yields:
        A function from the runs of one path to their results. It raises what failed in the process, and ParityError if
        the process is killed.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with TemporaryDirectory(dir=reference.folder) as scratch:
        stores = reference, EncoderCache(Path(scratch))

        def check(runs: Sequence[ParityRun]) -> list[CheckedRun]:
            try:
                return pool.submit(_check_bundle, step, bundle.folder, bundle.manifest, runs, *stores).result()
            except BrokenProcessPool:
                raise ParityError(
                    f"the process that ran {step.name} on path {runs[0].path} was killed: if memory ran out, smaller "
                    "images take less (--images); the same command resumes from the finished files"
                ) from None

        try:
            yield check
        finally:
            for process in list((pool._processes or {}).values()):  # shutdown alone waits for the running jobs
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def _check_bundle(
    step: ParityStep,
    folder: Path,
    manifest: Manifest,
    runs: Sequence[ParityRun],
    reference: ReferenceStore,
    cache: EncoderCache,
) -> list[CheckedRun]:
    bundle = Bundle(folder, manifest, verified=manifest.files)  # the build hashed the files when it made or reused them
    assert step.backend is not None
    backend = open_backend(step.backend, bundle, BackendOptions(precision=step.precision))
    try:
        return check_runs(backend, step, bundle, runs, reference, cache)
    finally:
        backend.close()
        del backend
        release_memory()


def check_runs(
    runner: ComponentRunner,
    step: ParityStep,
    bundle: Bundle,
    runs: Sequence[ParityRun],
    reference: ReferenceStore,
    cache: EncoderCache,
) -> list[CheckedRun]:
    """Compare runs with the reference: the pipeline end to end, and each isolated component on the reference's inputs.

    Args:
        runner: Runner of the components.
        step: The step.
        bundle: The bundle.
        runs: Runs of one path.
        reference: The reference's values of these runs.
        cache: Encoder outputs of this runner.

    Returns:
        The results of each run.
    """
    checked = []
    for run in runs:
        name, path, precision, expected = run.sample.name, run.path, step.graphs, reference.load(run)
        found = run_pipeline(runner, run, bundle, cache, precision)
        results = [compare_output(name, path, "pipeline", step.name, expected["image"], found["image"])]
        for component in run.isolated:
            output = MAIN_OUTPUT.get(component, "latent_restored")
            value = found[output]
            if component not in IMAGE_COMPONENTS:
                inputs = component_inputs(component, expected, bundle, precision)
                value = runner.run(component, inputs, None if path == "auto" else path)[output]
            results.append(compare_output(name, path, component, step.name, expected[output], value))
        checked.append(CheckedRun(step.name, name, path, results, found["image"]))
    return checked
