"""Engines of TensorRT and TensorRT-RTX: execution context, shapes, refit, and RTX's cache of compiled kernels."""

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
    """Return the logger of a library, one per process, because all objects that are created with it need it alive.

    It prints nothing, and keeps the last error message in its attribute `last`.

    Args:
        library: the module `tensorrt` or `tensorrt_rtx`.
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
    """Return the reason why an engine does not take an input, None where it does.

    Args:
        name: name of the input.
        shape: shape of the input.
        least: smallest shape of the engine's profile.
        largest: largest shape of the engine's profile.
    """
    inside = len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, largest, strict=True))
    if inside:
        return None
    return f"{name} has the shape {list(shape)}; this engine takes {list(least)} to {list(largest)}"


def cache_folder() -> Path:
    """Return the folder where compiled kernels are cached, which need not exist."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dod-runtime"


class Engine:
    """A deserialized engine with one execution context of profile 0. Scratch memory belongs to the caller.

    Args:
        library: the module `tensorrt` or `tensorrt_rtx`.
        runtime: a `Runtime` of the library.
        log: its logger, from `logger_of`.
        path: file of the engine. It is executable code; the caller has verified its hash.
        cache_name: name of the cache of compiled kernels, unique for the engine and the GPU.

    Raises:
        BackendError: the library refuses the engine.
    """

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
            # The library refuses kernels from another GPU, driver or version, and compiles them again.
            self._cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(self._cache)
        if self._engine.refittable:  # the same kernels before and after a refit
            eager = library.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        return self._engine.create_execution_context(config)

    def run(self, inputs: Mapping[str, DeviceTensor], memory: DeviceMemory) -> dict[str, DeviceTensor]:
        """Enqueue the engine on the stream of the memory.

        Args:
            inputs: tensors on the GPU by name.
            memory: stream and buffers.

        Returns:
            The outputs by name, in buffers of the memory.

        Raises:
            BackendError: the engine refuses an input, or fails.
            UsageError: the shape of an input is outside of the engine's profile.
        """
        context = self._context
        for name, tensor in inputs.items():
            self._check_input(name, tensor)
            if not (context.set_input_shape(name, tensor.shape) and context.set_tensor_address(name, tensor.address)):
                raise self._failure(f"it refuses the input {name} of shape {list(tensor.shape)}")
        missing = context.infer_shapes()
        if missing:
            raise self._failure(f"inputs are missing: {', '.join(missing)}")
        outputs: dict[str, DeviceTensor] = {}
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

    def refit(self, values: Mapping[str, np.ndarray]) -> None:
        """Replace all refittable weights. Nothing may be running.

        Args:
            values: the weights by name.

        Raises:
            BackendError: the engine refuses the weights. It may then hold old and new ones, and needs another refit.
        """
        if not self._engine.refittable:
            raise self._failure("it was built without --refit")
        refitter = self._library.Refitter(self._engine, self._log)
        if wrong := set(refitter.get_all_weights()) ^ set(values):
            raise self._failure(f"its refittable weights are not those of a condition: {min(wrong)}")
        held = {name: np.ascontiguousarray(value) for name, value in values.items()}  # alive until they are read
        for name, value in held.items():
            if not refitter.set_named_weights(name, self._library.Weights(value)):
                raise self._failure(f"it refuses the weights {name} of {value.dtype} {list(value.shape)}")
        if missing := refitter.get_missing_weights():
            raise self._failure(f"the condition gives no weights {missing[0]}")
        if not refitter.refit_cuda_engine():
            raise self._failure("the refit failed")

    def _check_input(self, name: str, tensor: DeviceTensor) -> None:
        if name not in self._limits:
            raise self._failure(f"it has no input {name}")
        least, _, largest = (tuple(shape) for shape in self._limits[name])
        reason = shape_reason(name, tensor.shape, least, largest)
        if reason:
            raise UsageError(f"{self._path.name}: {reason}")
        if tensor.dtype != self.dtypes[name]:
            raise self._failure(f"input {name} is {tensor.dtype}, expected {self.dtypes[name]}")

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"the engine {self._path} failed: {what} ({self._log.last or 'no reason given'})")

    def _save_cache(self) -> None:
        """Write the compiled kernels to the cache. Errors are ignored: the next start compiles the kernels again."""
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
        """Save the cache and free context and engine. Nothing may be running."""
        if self._engine is None:
            return
        if self._saved:
            self._save_cache()
        self._context = self._config = self._cache = self._engine = None
