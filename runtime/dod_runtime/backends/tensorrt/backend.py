"""TensorRT and TensorRT-RTX on an NVIDIA GPU. Only images, crops and results are copied between host and GPU."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...bundle.bundle import Bundle
from ...bundle.schema import REFITTED, TargetEntry
from ...condition_path import AUTO
from ...errors import BackendError, unknown
from ..base import BackendInfo, BackendOptions, Shapes, kept_sessions
from ..gpu import find_gpu
from .availability import NEEDED, is_installed, load_library, machine_reason, unavailable_reason
from .device_memory import DeviceMemory, DeviceTensor
from .engine import Engine, logger_of
from .refit import refit_reason, refit_threshold

__all__ = ["TensorRT", "is_installed", "machine_reason", "open_backend", "unavailable_reason"]


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> TensorRT:
    """Open the backend and load the engines of encoder and decoder.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        bundle: the bundle to run.
        options: options of the caller.

    Raises:
        BackendError: the library refuses an engine.
    """
    return TensorRT(name, bundle, options)


class TensorRT:
    """Engines on one GPU and one stream. Threads take turns, batch by batch.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        bundle: the bundle to run.
        options: options of the caller.

    Raises:
        BackendError: the library refuses an engine.
    """

    def __init__(self, name: str, bundle: Bundle, options: BackendOptions) -> None:
        library = load_library(name)
        target = bundle.manifest.targets[name]
        self.conditions = _conditions(bundle, target)
        gpu = find_gpu(options.device)
        place = f"GPU {options.device}, {gpu.name}"
        self.info = BackendInfo(name, library.__version__, place, target.precisions[0])
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
        """Load the engines of a path; see `Backend.open`. An engine serves all shapes of its profile.

        Args:
            path: components of the path, each with the shapes of its inputs.
            condition: condition that is merged into the UNet, None for the dynamic path.
        """
        for component in path:
            self._engine(component, condition)

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, DeviceTensor]:
        """Run one component; see `Backend.run`.

        Args:
            component: name of the component.
            inputs: arrays, which are uploaded, or tensors on the GPU, which are used in place, by name.
            condition: condition that is merged into the UNet; only `unet_merged` needs it.

        Returns:
            The outputs by name, on the GPU.
        """
        engine, memory = self._engine(component, condition), self._open_memory()
        bound: dict[str, DeviceTensor] = {}
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                bound[name] = memory.upload((component, name), value, engine.dtypes[name])
            else:
                bound[name] = value
        return engine.run(bound, memory)

    def to_numpy(self, value: DeviceTensor) -> np.ndarray:
        """Copy a tensor from the GPU; see `Backend.to_numpy`.

        Args:
            value: output of `run`.
        """
        return self._open_memory().download(value)

    @contextmanager
    def batch(self, shape: tuple[int, ...]) -> Generator[None, None, None]:
        """Lock the GPU for one batch; see `Backend.batch`. At the end the stream is empty, so buffers are free again.

        Args:
            shape: shape of the batch.
        """
        with self._lock:
            memory = self._open_memory()
            memory.activate()
            memory.select(shape)
            try:
                yield
            finally:
                memory.synchronize()

    def stopwatch(self) -> Callable[[], float]:
        """Start a clock of CUDA events on the stream; see `Backend.stopwatch`."""
        return self._open_memory().stopwatch()

    def close(self) -> None:
        """Free engines and memory; see `Backend.close`."""
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
            raise BackendError(f"{self.info.name} was closed")
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
        """Return the merged UNet with the weights of a condition.

        A refit always replaces all weights, computed from the stored ones, so that switching A, B, A gives A.
        """
        if REFITTED not in self._engines:
            self._engines[REFITTED] = self._load(REFITTED)
        engine = self._engines[REFITTED]
        if self._refitted_to != condition:
            self._refitted_to = ""  # an engine whose refit fails holds weights of both
            self._open_memory().synchronize()
            engine.refit(self._bundle.merged(self._bundle.manifest.precisions[self.info.precision], condition))
            self._check_refit(engine, condition)
            self._refitted_to = condition
        return engine

    def _check_refit(self, engine: Engine, condition: str) -> None:
        """Compare the refitted UNet with the dynamic UNet at the prototype; raise BackendError where they differ.

        Some library versions refit wrongly without an error. The check detects differences that are larger than those
        of fp16.
        """
        if condition not in self._expected:
            kept = "unet_dynamic" in self._engines
            modulation = self._bundle.modulation(condition)[None]
            self._expected[condition] = self._probed(self._engine("unet_dynamic", None), modulation=modulation)
            if not kept:  # callers that never use `auto` need not hold it
                self._engines.pop("unet_dynamic").close()
        threshold = refit_threshold(self._bundle.manifest)
        reason = refit_reason(self._expected[condition], self._probed(engine), threshold)
        if reason:
            raise BackendError(
                f"{self.info.name} refitted the weights of {condition} wrongly: {reason}; rebuild without --refit"
            )

    def _probed(self, engine: Engine, **inputs: np.ndarray) -> np.ndarray:
        """Return the result of a UNet for one small random latent."""
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
        """Deserialize an engine, which is executable code: `Bundle.path` verifies its hash first."""
        if name not in self._target.engines:
            raise BackendError(f"this bundle lacks the engine of {name} for {self.info.name}")
        file = self._target.engines[name]
        path = self._bundle.path(file)
        record = self._bundle.manifest.files[file]
        return Engine(self._library, self._runtime, self._log, path, f"{record.sha256[:16]}-{self._gpu.slug}")


def _conditions(bundle: Bundle, target: TargetEntry) -> tuple[str, ...]:
    """Return the names of the condition paths that have all of their engines."""
    dynamic = (AUTO,) if {"mfm", "unet_dynamic"} <= target.engines.keys() else ()
    refitted = {REFITTED, "unet_dynamic"} <= target.engines.keys()
    return (*dynamic, *(name for name in bundle.manifest.conditions if refitted or f"unet_{name}" in target.engines))
