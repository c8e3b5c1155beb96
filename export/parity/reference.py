"""A chain of components on photographs, held against the reference's values; a bundle's in a process of its own.

ONNX Runtime and OpenVINO do not give everything back that they took where a model in PyTorch lived before them; a
process does when it ends. This module needs no torch, so that such a process is a light one.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from dod.data.images import centre_crop
from dod_runtime.backends import open_backend
from dod_runtime.backends.base import BackendOptions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.safetensors import read_tensors, write_tensors
from dod_runtime.bundle.schema import GATE, REDUCED, Manifest
from dod_runtime.condition_path import ConditionPath
from dod_runtime.image.geometry import crops, pad, padded_size
from dod_runtime.image.read import read
from dod_runtime.pipeline import components_of
from export.errors import ParityError
from export.memory import give_back
from export.parity.compare import Figure, figure

FIRST = ("mfm", "encoder")
"""What takes the image itself, in the chain as alone."""
OUTPUT = {"mfm": "modulation", "gate": "gains", "encoder": "latent", "decoder": "image"}
Values = Mapping[str, np.ndarray]


class Computer(Protocol):
    """What runs components by name: a backend of the runtime, or a model in PyTorch."""

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, Any]:
        """See `dod_runtime.backends.base.Backend.run`."""
        ...


@dataclass(frozen=True)
class Sample:
    """A photograph ready for the chain: image [1, 3, H, W] and crops [1, K, 3, R, R], float32 in [-1, 1]."""

    name: str
    condition: str
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """What is held against the reference in one step: the precision of its graphs, and who computes them in which.

    backend: None is PyTorch itself.
    """

    step: str
    graphs: str
    backend: str | None
    precision: str


@dataclass(frozen=True)
class Run:
    """One image through one path. alone: those of its components that are compared by themselves too."""

    path: str
    components: Sequence[str]
    sample: Sample
    alone: Sequence[str] = ()


@dataclass(frozen=True)
class ParityCheck:
    """What one step gave for one sample on one path: its figures, and the restored image [1, 3, H, W]."""

    step: str
    sample: str
    path: str
    figures: list[Figure]
    restored: np.ndarray


@dataclass(frozen=True)
class Shared:
    """What the encoder gave of each sample, by one computer: it is the same on every path. In files, as `Wanted`'s."""

    folder: Path

    def once(self, sample: Sample, compute: Callable[[], Values]) -> Values:
        """What was kept of the sample's, mapped, else what is computed, which is kept."""
        path = self.folder / f"{sample.name}.safetensors"
        if path.exists():
            return read_tensors(path)
        values = compute()
        _write(path, values)
        return values


@dataclass
class Wanted:
    """The reference's values of each run, in files of a folder: as large as an image's skips, they need not wait in
    memory."""

    folder: Path
    files: dict[tuple[str, str], Path] = field(default_factory=dict)

    def keep(self, run: Run, values: Values) -> None:
        """Write what a run gave."""
        path = self.folder / f"{len(self.files)}.safetensors"
        _write(path, values)
        self.files[run.sample.name, run.path] = path

    def of(self, run: Run) -> dict[str, np.ndarray]:
        """The values of a run, mapped."""
        return read_tensors(self.files[run.sample.name, run.path])


def _write(path: Path, values: Values) -> None:
    write_tensors(path, {name: (value.dtype, value.shape) for name, value in values.items()}, values.values())


def sample_pixels(path: Path, largest: int) -> np.ndarray:
    """The middle of a photograph, at most `largest` px on either side: float32 [H, W, 3] in [-1, 1], upright."""
    return centre_crop(read(path).pixels, largest)


def load_sample(path: Path, bundle: Bundle, conditions: Sequence[str]) -> Sample:
    """A photograph as the runtime prepares it, with the condition that its name begins with, "" where there is none."""
    manifest = bundle.manifest
    pixels = sample_pixels(path, manifest.profile.size[2])
    sizes = manifest.size_multiple, manifest.profile.size[0], manifest.profile.size[2]
    image = pad(pixels, *(padded_size(side, *sizes) for side in pixels.shape[:2])).transpose(2, 0, 1)[None]
    taken = crops(pixels, manifest.crops.count, manifest.crops.size)[None]
    values = {"image": np.ascontiguousarray(image), "crops": taken}
    return Sample(path.name, condition_of(path.name, conditions), values)


def condition_of(name: str, conditions: Sequence[str]) -> str:
    """Return the longest condition that a file's name begins with, "" where there is none."""
    return max((each for each in conditions if name.startswith(each)), key=len, default="")


def subjects(bundle: Bundle) -> list[Subject]:
    """The steps of a proof in order. PyTorch's half comes first: then the model's values are not needed any more."""
    manifest = bundle.manifest
    found = [Subject("torch fp16", "fp16", None, "fp16")] if "fp16" in manifest.precisions else []
    found += [Subject(f"onnx {each}", each, "onnxruntime_cpu", each) for each in manifest.precisions]
    openvino = manifest.targets.get("openvino")
    for precision in openvino.precisions if openvino else ():
        found.append(Subject(f"openvino {precision}", REDUCED.get(precision, precision), "openvino", precision))
    return found


def paths_of(bundle: Bundle, samples: Sequence[Sample]) -> dict[str, list[Run]]:
    """The runs of each path: every sample through `auto`, and those of a condition through its merged path.

    A condition without a sample of its own takes the first sample as it is: parity holds on any image, and what the
    encoder gives of that sample is there already. The first of a path has its components compared alone too.
    """
    dynamic = components_of(bundle, ConditionPath())
    paths = {"auto": [Run("auto", dynamic, each, dynamic if each is samples[0] else ()) for each in samples]}
    for name in sorted(bundle.manifest.conditions):
        taken = [each for each in samples if each.condition == name] or samples[:1]
        alone, merged = ("unet_merged",), components_of(bundle, ConditionPath(name))
        paths[name] = [Run(name, merged, each, alone if each is taken[0] else ()) for each in taken]
    return paths


@contextmanager
def bundle_process(subject: Subject, bundle: Bundle, wanted: Wanted) -> Iterator[Any]:
    """A process for one subject's backend; gives a function from the runs of one path to their proofs.

    Raises what went wrong in it, ParityError where it is ended from outside.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with TemporaryDirectory(dir=wanted.folder) as scratch:
        given = subject, bundle.folder, bundle.manifest
        kept = wanted, Shared(Path(scratch))

        def compared(runs: Sequence[Run]) -> list[ParityCheck]:
            try:
                return pool.submit(_compare_bundle, *given, runs, *kept).result()
            except BrokenProcessPool:
                raise ParityError(
                    f"the process that ran {subject.step} on path {runs[0].path} was ended from outside: with too "
                    "little memory, smaller images take less (--samples); the same command goes on from what is "
                    "finished"
                ) from None

        try:
            yield compared
        finally:
            for process in list((pool._processes or {}).values()):  # a shutdown alone would wait for what they are at
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def _compare_bundle(
    subject: Subject, folder: Path, manifest: Manifest, runs: Sequence[Run], wanted: Wanted, shared: Shared
) -> list[ParityCheck]:
    bundle = Bundle(folder, manifest, verified=manifest.files)  # the build hashed them when it made or took them
    assert subject.backend is not None
    computer = open_backend(subject.backend, bundle, BackendOptions(precision=subject.precision))
    try:
        return compare(computer, subject, bundle, runs, wanted, shared)
    finally:
        computer.close()
        del computer
        give_back()


def compare(
    computer: Computer, subject: Subject, bundle: Bundle, runs: Sequence[Run], wanted: Wanted, shared: Shared
) -> list[ParityCheck]:
    """Each run's figures: the chain's, and those of the components alone, each fed with the reference's own inputs."""
    checks = []
    for run in runs:
        name, path, precision, expected = run.sample.name, run.path, subject.graphs, wanted.of(run)
        found = run_pipeline(computer, run, bundle, shared, precision)
        figures = [figure(name, path, "pipeline", subject.step, expected["image"], found["image"])]
        for component in run.alone:
            output = OUTPUT.get(component, "latent_restored")
            result = found[output]
            if component not in FIRST:
                inputs = _inputs(component, expected, bundle, precision)
                result = computer.run(component, inputs, None if path == "auto" else path)[output]
            figures.append(figure(name, path, component, subject.step, expected[output], result))
        checks.append(ParityCheck(subject.step, name, path, figures, found["image"]))
    return checks


def run_pipeline(
    computer: Computer, run: Run, bundle: Bundle, shared: Shared, precision: str | None = None
) -> dict[str, np.ndarray]:
    """Every value along the chain, by name. The restored image replaces the degraded one under `image`.

    shared: of this computer's other paths. precision: of the bundle's graphs; None: as the reference takes it.
    """
    fixed = {} if run.path == "auto" else fixed_values(bundle, run.path)
    values = {**run.sample.values, "degraded": run.sample.values["image"], **fixed}
    condition = None if run.path == "auto" else run.path
    for component in run.components:
        compute = partial(computer.run, component, _inputs(component, values, bundle, precision), condition)
        values |= shared.once(run.sample, compute) if component == "encoder" else compute()
        if component == GATE and fixed:
            values["share"] = fixed["share"]  # the condition decides it, the gate its kernel alone
    return values


def fixed_values(bundle: Bundle, condition: str) -> dict[str, np.ndarray]:
    """What a named condition decides of one image in a model with a gate: `condition` [1, C], `share` [1, 1], and
    `gains` [1, F] of nothing where the gate does not run."""
    if not bundle.manifest.gated:
        return {}
    values = bundle.condition_tensors(condition)
    gains = np.zeros((1, bundle.manifest.filters), np.float32)
    return {"condition": values["condition"][None], "share": values["share"][None], "gains": gains}


def _inputs(component: str, values: Values, bundle: Bundle, precision: str | None) -> dict[str, np.ndarray]:
    """What a component takes, in the types of the bundle's graphs of a precision."""
    specs = bundle.manifest.components[component].inputs
    dtypes = {spec.name: spec.dtype_in(precision) if precision else "float32" for spec in specs}
    return {name: np.asarray(values[name]).astype(dtype, copy=False) for name, dtype in dtypes.items()}
