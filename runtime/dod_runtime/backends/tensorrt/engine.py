"""One engine of TensorRT or TensorRT-RTX: its context, its shapes, and RTX's cache of compiled kernels."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError, UsageError
from .device_memory import DeviceMemory, DeviceTensor

__all__ = ["Engine", "cache_folder", "logger_of", "shape_reason"]

PROFILE = 0


@lru_cache(maxsize=2)
def logger_of(library: Any) -> Any:
    """The logger of a library, one for the process, since all that is made with it needs it alive.

    It prints nothing, and keeps the last error as `last`.
    """

    class Logger(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(msg.split())

    return Logger()


def shape_reason(name: str, shape: tuple[int, ...], least: tuple[int, ...], largest: tuple[int, ...]) -> str | None:
    """Why an input of `shape` is outside of the profile of an engine; None where it is inside."""
    inside = len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, largest, strict=True))
    if inside:
        return None
    return f"{name} has the shape {list(shape)}; this engine takes {list(least)} to {list(largest)}"


def cache_folder() -> Path:
    """Where compiled kernels are kept for the next start."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dod-runtime"


class Engine:
    """A deserialised engine with its one execution context, profile 0. Its scratch memory is lent by the caller."""

    def __init__(self, library: Any, runtime: Any, log: Any, path: Path, cache_name: str) -> None:
        self._library, self._log, self._path = library, log, path
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BackendError(
                f"{library.__name__} {library.__version__} cannot load {path}: {log.last or 'no reason'}"
            )
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in inputs]
        self.dtypes = {name: np.dtype(library.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._limits = {name: engine.get_tensor_profile_shape(name, PROFILE) for name in inputs}
        self._engine: Any = engine
        self._cache: Any = None
        self._config: Any = None
        self._cache_file = cache_folder() / f"{library.__name__}-{cache_name}.cache"
        self._saved = 0
        self._context: Any = self._make_context(library)
        if self._context is None:
            raise BackendError(f"no execution context for {path}: {log.last or 'no reason given'}")

    def _make_context(self, library: Any) -> Any:
        user_managed = library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(library, "IRuntimeCache"):
            return self._engine.create_execution_context(user_managed)
        self._config = config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user_managed)
        self._cache = config.create_runtime_cache()
        with suppress(OSError):
            # The library refuses what another GPU, driver or version has compiled; then it compiles anew.
            self._cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(self._cache)
        if self._engine.refittable:  # the same kernels before and after another condition
            eager = library.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        return self._engine.create_execution_context(config)

    def run(self, inputs: Mapping[str, DeviceTensor], memory: DeviceMemory) -> dict[str, DeviceTensor]:
        """Enqueues the engine on the stream of `memory`. Returns its outputs, in buffers of `memory`."""
        context = self._context
        for name, tensor in inputs.items():
            self._check_input(name, tensor)
            if not (context.set_input_shape(name, tensor.shape) and context.set_tensor_address(name, tensor.address)):
                raise self._failure(f"it refuses the input {name} of shape {list(tensor.shape)}")
        missing = context.infer_shapes()
        if missing:
            raise self._failure(f"inputs are missing: {', '.join(missing)}")
        outputs = {}
        for name in self.outputs:
            shape = tuple(context.get_tensor_shape(name))
            outputs[name] = memory.tensor((self._path.stem, name), shape, self.dtypes[name])
            context.set_tensor_address(name, outputs[name].address)
        size = max(256, context.update_device_memory_size_for_shapes())
        context.set_device_memory(memory.scratch(size), size)
        if not context.execute_async_v3(int(memory.stream)):
            raise self._failure("it did not start")
        if self._cache is not None and not self._saved:
            memory.synchronize()
            self._save_cache()
        return outputs

    def exchange(self, values: Mapping[str, np.ndarray]) -> None:
        """Gives the engine new weights by name, all that can be exchanged; nothing may be running.

        Raises BackendError where it does not take them; then it may hold some of each and must be given all again.
        """
        if not self._engine.refittable:
            raise self._failure("it was not built for an exchange of weights")
        refitter = self._library.Refitter(self._engine, self._log)
        if wrong := set(refitter.get_all_weights()) ^ set(values):
            raise self._failure(f"the weights that it exchanges are not those of a condition: {min(wrong)}")
        held = {name: np.ascontiguousarray(value) for name, value in values.items()}  # alive until they are read
        for name, value in held.items():
            if not refitter.set_named_weights(name, self._library.Weights(value)):
                raise self._failure(f"it takes no weights {name} of {value.dtype} {list(value.shape)}")
        if missing := refitter.get_missing_weights():
            raise self._failure(f"the condition gives no weights {missing[0]}")
        if not refitter.refit_cuda_engine():
            raise self._failure("its weights could not be exchanged")

    def _check_input(self, name: str, tensor: DeviceTensor) -> None:
        if name not in self._limits:
            raise self._failure(f"it has no input {name}")
        least, _, largest = (tuple(shape) for shape in self._limits[name])
        reason = shape_reason(name, tensor.shape, least, largest)
        if reason:
            raise UsageError(f"{self._path.name}: {reason}")
        if tensor.dtype != self.dtypes[name]:
            raise self._failure(f"{name} is {tensor.dtype}, and it takes {self.dtypes[name]}")

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"the engine {self._path} failed: {what} ({self._log.last or 'no reason given'})")

    def _save_cache(self) -> None:
        """Keeps the compiled kernels. That it cannot is no failure: they are compiled again at the next start."""
        blob = bytes(self._cache.serialize())
        if len(blob) == self._saved:
            return
        self._saved = len(blob)
        part = self._cache_file.with_name(f"{self._cache_file.name}.{os.getpid()}")
        with suppress(OSError):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(blob)
            os.replace(part, self._cache_file)

    def close(self) -> None:
        """Saves the cache and frees context and engine; nothing may be running."""
        if self._engine is None:
            return
        if self._saved:
            self._save_cache()
        self._context = self._config = self._cache = self._engine = None
