"""TensorRT and TensorRT-RTX: one class that is given the library's module. Only image and result cross the bus."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from ...bundle.bundle import Bundle
from ...bundle.schema import REFITTED, Manifest, TargetEntry
from ...errors import BackendError, unknown
from ..base import Options, Shapes, choose_precision, kept_sessions
from ..gpu import Gpu, find_gpu
from .device_memory import DeviceMemory, DeviceTensor, call, load_cudart
from .engine import Engine, logger_of

__all__ = ["TensorRT", "open_backend", "unavailable_reason"]

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
HEADER_BYTES = 64
MARGIN_DB = 8.0
"""Between two engines' errors in half precision and one's as PyTorch has it: the two add up, and their kernels round
where PyTorch does not."""
UNMEASURED_DB = 40.0
"""Asked for where a bundle says nothing of half precision."""
NEEDED = ("encoder", "decoder")


def unavailable_reason(name: str, bundle: Bundle, options: Options) -> str | None:
    """Why the engines of target `name` cannot run here; None where they can. Deserialises nothing.

    Asked in this order: is the target in the bundle, is the library there and of the engines' version, is there a
    driver and a GPU, is it one that the engines were built for, and what the library says of an engine's header.
    """
    target = bundle.manifest.targets.get(name)
    if target is None:
        return f"this bundle was built without the target {name}"
    missing = [component for component in NEEDED if component not in target.engines]
    if missing:
        return f"this bundle lacks the engine of {missing[0]} for {name}"
    if choose_precision(options.precision, target.precisions, "fp16") is None:
        return f"its engines are {' and '.join(target.precisions)}, not {options.precision}"
    try:
        library = _library(name)
        reason = version_reason(name, target, library.__version__)
        if reason:
            return reason
        gpu = find_gpu(options.device)
        _check_cuda(gpu)
        return gpu_reason(target, gpu) or _validity_reason(name, bundle, library)
    except BackendError as error:
        return str(error)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"the library {name} cannot be imported ({error}); install it with: pip install {EXTRAS[name]}"
        ) from error


def version_reason(name: str, target: TargetEntry, installed: str) -> str | None:
    """Why engines of `target.version` do not fit the installed library: all of it under TensorRT, else major.minor."""
    parts = None if name == "tensorrt" else 2
    if target.version.split(".")[:parts] == installed.split(".")[:parts]:
        return None
    return f"its engines were built with {name} {target.version}, and {installed} is installed"


def gpu_reason(target: TargetEntry, gpu: Gpu) -> str | None:
    """Why engines do not fit a GPU: RTX's fit the capabilities named; what was built on a GPU fits its model alone."""
    if gpu.compute_capability not in target.compute_capabilities:
        built = ", ".join(target.compute_capabilities)
        return f"its engines are for compute capability {built}, and {gpu.name} has {gpu.compute_capability}"
    if target.gpu and target.gpu != gpu.name:
        return f"its engines were built on {target.gpu}, and this is {gpu.name}"
    return None


def _check_cuda(gpu: Gpu) -> None:
    """Raises BackendError where the driver is too old for the installed CUDA runtime (cudaError 35)."""
    try:
        call(load_cudart().cudaGetDeviceCount)
    except BackendError as error:
        raise BackendError(f"the driver supports CUDA {gpu.driver_cuda}, which is not enough: {error}") from error


def _validity_reason(name: str, bundle: Bundle, library: Any) -> str | None:
    """What TensorRT-RTX says of the first bytes of the encoder's engine, its hash checked before."""
    if not hasattr(library.Runtime, "get_engine_validity"):
        return None
    with bundle.path(bundle.manifest.targets[name].engines["encoder"]).open("rb") as file:
        header = file.read(HEADER_BYTES)
    log = logger_of(library)
    validity, diagnostics = library.Runtime(log).get_engine_validity(header)
    if validity != library.EngineValidity.INVALID:
        return None
    return f"{name} refuses its engines: {diagnosis(library, int(diagnostics)) or log.last or 'it does not say why'}"


def diagnosis(library: Any, diagnostics: int) -> str:
    """The names of the bits that `get_engine_validity` set, in words."""
    flags = library.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name.lower().replace("_", " ") for name, flag in flags if diagnostics & flag.value)


def open_backend(name: str, bundle: Bundle, options: Options) -> TensorRT:
    """Opens the backend and loads encoder and decoder. Raises BackendError where the library refuses them."""
    return TensorRT(name, bundle, options)


class TensorRT:
    """Engines on one GPU and one stream. Threads take turns, chain by chain."""

    def __init__(self, name: str, bundle: Bundle, options: Options) -> None:
        library = _library(name)
        target = bundle.manifest.targets[name]
        self.name, self.precision = name, target.precisions[0]
        self.conditions = _conditions(bundle, target)
        gpu = find_gpu(options.device)
        self.description = f"{name} {library.__version__} on GPU {options.device}, {gpu.name}, {self.precision}"
        self._library, self._bundle, self._target, self._gpu = library, bundle, target, gpu
        self._lock = threading.RLock()
        self._memory: DeviceMemory | None = DeviceMemory(options.device)
        self._log = logger_of(library)
        self._runtime = library.Runtime(self._log)
        self._engines: dict[str, Engine] = {}
        self._merged: OrderedDict[str, Engine] = OrderedDict()
        self._refitted_to = ""
        self._expected: dict[str, np.ndarray] = {}
        try:
            for component in NEEDED:
                self._engine(component, None)
        except BaseException:
            self.close()
            raise

    def open(self, path: Mapping[str, Shapes], condition: str | None = None) -> None:
        """See `Backend.open`. An engine serves all shapes of its profile."""
        for component in path:
            self._engine(component, condition)

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, DeviceTensor]:
        """See `Backend.run`. Arrays are uploaded; what is on the GPU already is bound where it lies."""
        engine, memory = self._engine(component, condition), self._open_memory()
        bound: dict[str, DeviceTensor] = {}
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                bound[name] = memory.upload((component, name), value, engine.dtypes[name])
            else:
                bound[name] = value
        return engine.run(bound, memory)

    def to_numpy(self, value: DeviceTensor) -> np.ndarray:
        """See `Backend.to_numpy`."""
        return self._open_memory().download(value)

    @contextmanager
    def chain(self, shape: tuple[int, ...]) -> Iterator[None]:
        """See `Backend.chain`. The stream is empty again at its end, so that buffers may be used anew."""
        with self._lock:
            memory = self._open_memory()
            memory.activate()
            memory.select(shape)
            try:
                yield
            finally:
                memory.synchronize()

    def stopwatch(self) -> Callable[[], float]:
        """See `Backend.stopwatch`. CUDA events on the stream."""
        return self._open_memory().stopwatch()

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            memory, self._memory = self._memory, None
            if memory is None:
                return
            memory.activate()
            memory.synchronize()
            for engine in (*self._engines.values(), *self._merged.values()):
                engine.close()
            self._engines.clear()
            self._merged.clear()
            self._runtime = None
            memory.close()

    def _open_memory(self) -> DeviceMemory:
        if self._memory is None:
            raise BackendError(f"{self.name} was closed")
        return self._memory

    def _engine(self, component: str, condition: str | None) -> Engine:
        if component != "unet_merged":
            if component not in self._engines:
                self._engines[component] = self._load(component)
            return self._engines[component]
        if condition is None or condition not in self.conditions:
            raise unknown("condition", condition, self.conditions)
        if REFITTED in self._target.engines:
            return self._refitted(condition)
        if condition not in self._merged:
            name = f"unet_{condition}"
            size = self._bundle.manifest.files[self._target.engines[name]].bytes
            while len(self._merged) >= kept_sessions(size):
                _, oldest = self._merged.popitem(last=False)
                oldest.close()
            self._merged[condition] = self._load(name)
        self._merged.move_to_end(condition)
        return self._merged[condition]

    def _refitted(self, condition: str) -> Engine:
        """The one merged UNet with a condition's weights: always all of them, from the stored ones, never those alone
        that differ from the condition before, so that switching A, B, A gives A."""
        if REFITTED not in self._engines:
            self._engines[REFITTED] = self._load(REFITTED)
        engine = self._engines[REFITTED]
        if self._refitted_to != condition:
            self._refitted_to = ""  # what fails halfway holds some weights of each
            self._open_memory().synchronize()
            engine.exchange(self._bundle.merged(self._bundle.manifest.precisions[self.precision], condition))
            self._check_refit(engine, condition)
            self._refitted_to = condition
        return engine

    def _check_refit(self, engine: Engine, condition: str) -> None:
        """Raises BackendError where the engine does not compute what the dynamic path does at the condition's values:
        libraries have been known to exchange weights wrongly without a word. Seen is what changes the result by more
        than half precision does."""
        if condition not in self._expected:
            kept = "unet_dynamic" in self._engines
            modulation = self._bundle.modulation(condition)[None]
            self._expected[condition] = self._probed(self._engine("unet_dynamic", None), modulation=modulation)
            if not kept:  # who never takes `auto` need not hold it
                self._engines.pop("unet_dynamic").close()
        least = refit_threshold(self._bundle.manifest)
        reason = refit_reason(self._expected[condition], self._probed(engine), least)
        if reason:
            raise BackendError(
                f"{self.name} exchanged the weights of {condition} wrongly: {reason}; rebuild without --refit"
            )

    def _probed(self, engine: Engine, **inputs: np.ndarray) -> np.ndarray:
        """What a UNet makes of one small random latent."""
        side = self._bundle.manifest.profile.size[0]
        (latent, *_) = self._bundle.manifest.components["unet_merged"].inputs
        values = np.random.default_rng(0).standard_normal(latent.sized(1, side, side), np.float32)
        memory = self._open_memory()
        bound = {
            name: memory.upload(("probe", name), value, engine.dtypes[name])
            for name, value in {latent.name: values, **inputs}.items()
        }
        (restored,) = engine.run(bound, memory).values()
        return memory.download(restored).astype(np.float32)

    def _load(self, name: str) -> Engine:
        """Deserialises an engine, which is executable code: `Bundle.path` has checked its hash."""
        if name not in self._target.engines:
            raise BackendError(f"this bundle lacks the engine of {name} for {self.name}")
        file = self._target.engines[name]
        path = self._bundle.path(file)
        record = self._bundle.manifest.files[file]
        return Engine(self._library, self._runtime, self._log, path, f"{record.sha256[:16]}-{self._gpu.slug}")


def refit_threshold(manifest: Manifest) -> float:
    """The SNR in dB that the refitted UNet must have against the dynamic one: what the export found of both in half
    precision against float32, less MARGIN_DB."""
    unets = ("unet_dynamic", "unet_merged")
    rows = [row for row in manifest.parity if row.get("step") == "half" and row.get("component") in unets]
    return min((float(row["snr_db"]) for row in rows), default=UNMEASURED_DB + MARGIN_DB) - MARGIN_DB


def refit_reason(expected: np.ndarray, found: np.ndarray, least: float) -> str | None:
    """Why an engine does not hold the weights that it was given, by what it makes of one input; None where it does."""
    error = float(np.square(found - expected, dtype=np.float64).mean() / np.square(expected, dtype=np.float64).mean())
    if error <= 10 ** (-least / 10):
        return None
    return f"against the dynamic path SNR {-10 * np.log10(error):.1f} dB, and {least:.1f} dB are asked for"


def _conditions(bundle: Bundle, target: TargetEntry) -> tuple[str, ...]:
    """The conditions that have all of their engines."""
    dynamic = ("auto",) if {"mfm", "unet_dynamic"} <= target.engines.keys() else ()
    refitted = {REFITTED, "unet_dynamic"} <= target.engines.keys()
    return (*dynamic, *(name for name in bundle.manifest.conditions if refitted or f"unet_{name}" in target.engines))
