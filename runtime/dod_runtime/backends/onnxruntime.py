"""ONNX Runtime on the CPU or on CUDA. A condition replaces values of the merged graph, never the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.safetensors import read_tensors
from ..errors import BackendError, BundleError, DODRuntimeError
from .base import BackendInfo, BackendOptions, Shapes, choose_precision, cpu_place
from .gpu import find_gpu
from .mapped import map_file
from .sessions import Sessions

__all__ = ["OnnxRuntime", "is_installed", "machine_reason", "open_backend", "unavailable_reason"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
COPYING = ["ConstantFolding"]
"""Optimizers that copy weights: too expensive for a model of gigabytes, whose UNets run without any optimizer."""


def unavailable_reason(name: str, bundle: Bundle, options: BackendOptions) -> str | None:
    """Return the reason why ONNX Runtime cannot run a bundle here, None where it can.

    Args:
        name: `onnxruntime_cuda` or `onnxruntime_cpu`.
        bundle: the bundle to run.
        options: options of the caller.
    """
    if "onnxruntime" not in bundle.manifest.targets:
        return "this bundle was built without the target onnxruntime"
    if _precision(name, bundle, options) is None:
        offered = bundle.manifest.targets["onnxruntime"].precisions
        return f"this bundle has {' and '.join(offered)} for it, not {options.precision}"
    return machine_reason(name, options)


def machine_reason(name: str, options: BackendOptions) -> str | None:
    """Return the reason why ONNX Runtime cannot run any bundle here, None if it can.

    Args:
        name: `onnxruntime_cuda` or `onnxruntime_cpu`.
        options: options of the caller.
    """
    on_cuda = name == "onnxruntime_cuda"
    extra = "onnxruntime-gpu" if on_cuda else "onnxruntime"
    try:
        import onnxruntime
    except ImportError as error:
        return f"the library onnxruntime cannot be imported ({error}); install it with: pip install {extra}"
    if not on_cuda:
        return None
    if CUDA not in onnxruntime.get_available_providers():
        return "the installed onnxruntime has no CUDA provider; replace it with: pip install onnxruntime-gpu"
    try:
        find_gpu(options.device)
    except BackendError as error:
        return str(error)
    return None


def is_installed(name: str) -> bool:
    """Return True where ONNX Runtime is installed, for `onnxruntime_cuda` with its CUDA provider.

    Args:
        name: `onnxruntime_cuda` or `onnxruntime_cpu`.
    """
    try:
        import onnxruntime
    except ImportError:
        return False
    return name != "onnxruntime_cuda" or CUDA in onnxruntime.get_available_providers()


def _precision(name: str, bundle: Bundle, options: BackendOptions) -> str | None:
    """Return the precision: by default fp16 on CUDA, and fp32 on the CPU, which computes fp16 graphs in fp32 anyway."""
    offered = bundle.manifest.targets["onnxruntime"].precisions
    return choose_precision(options.precision, offered, "fp16" if name == "onnxruntime_cuda" else "fp32")


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> OnnxRuntime:
    """Open the backend.

    Args:
        name: `onnxruntime_cuda` or `onnxruntime_cpu`.
        bundle: the bundle to run.
        options: options of the caller.

    Raises:
        BackendError: a session cannot be created on the device.
    """
    return OnnxRuntime(name, bundle, options)


class OnnxRuntime(Sessions):
    """One session for each component and condition, created at its first use. Threads may share sessions.

    On the CPU all sessions of the process share one memory arena, which grows by exactly what is requested. Arenas of
    their own grow by doubling and plan a block for the whole graph: they hold up to 2.5 times as much memory and are no
    faster. The arena returns to the system when the backend is closed and after an image whose size differs from the
    last one, because its blocks fit no other size. Where the UNet is large it returns after each image; for a small
    UNet that would cost 5 % of the time.

    Args:
        name: `onnxruntime_cuda` or `onnxruntime_cpu`.
        bundle: the bundle to run.
        options: options of the caller.

    Raises:
        BackendError: a session cannot be created on the device.
    """

    def __init__(self, name: str, bundle: Bundle, options: BackendOptions) -> None:
        import onnxruntime

        precision = _precision(name, bundle, options)
        if precision is None:
            raise BackendError(unavailable_reason(name, bundle, options) or "no precision to run")
        super().__init__(bundle, bundle.manifest.precisions[precision])
        self._ort, self._options = onnxruntime, options
        self._device = options.device if name == "onnxruntime_cuda" else None
        self._returning = onnxruntime.RunOptions()
        self._shape: tuple[int, ...] = ()
        self._lent: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()  # arrays that sessions borrow
        if self._device is None:
            try:
                _make_arena()
            except Exception as error:  # as in `run`
                raise BackendError(f"ONNX Runtime cannot create its arena: {_first_line(error)}") from error
            self._returning.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            place = cpu_place(options.num_threads)
        else:
            place = f"GPU {self._device}, {find_gpu(self._device).name}"
            self._session("encoder", None)
        self.info = BackendInfo(name, onnxruntime.__version__, place, precision)

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, Any]:
        """Run one component; see `Backend.run`.

        Args:
            component: name of the component.
            inputs: arrays or `OrtValue`s by name.
            condition: condition that is merged into the UNet; only `unet_merged` needs it.

        Returns:
            The outputs by name: `OrtValue`s on CUDA, arrays on the CPU.
        """
        session = self._session(component, condition)
        with self._saving_memory(self._bundle.folder):
            names = [output.name for output in session.get_outputs()]
            try:
                if self._device is not None:
                    return self._run_bound(session, names, inputs)
                if component == "decoder":
                    return self._run_last(session, inputs)
                return dict(zip(names, session.run(names, dict(inputs)), strict=True))
            except Exception as error:  # the only common base of ONNX Runtime's exceptions
                raise BackendError(f"ONNX Runtime failed in {component}: {_first_line(error)}") from error

    def _run_bound(self, session: Any, names: list[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
        binding = session.io_binding()
        for key, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(key, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(key, value)
        for key in names:
            binding.bind_output(key, "cuda", self._device)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.get_outputs(), strict=True))

    def _run_last(self, session: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        # The image gets memory outside the arena: inside it would keep its whole block in use.
        decoder = self._bundle.manifest.components["decoder"]
        arrays = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
        sizes = next(spec.sizes(arrays[spec.name].shape) for spec in decoder.inputs)
        precision = self.info.precision
        results = {spec.name: np.empty(spec.sized(**sizes), spec.dtype_in(precision)) for spec in decoder.outputs}
        binding = session.io_binding()
        for key, value in arrays.items():
            binding.bind_cpu_input(key, value)
        for key, value in results.items():
            binding.bind_output(key, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        session.run_with_iobinding(binding, self._ending(inputs))
        return results

    def to_numpy(self, value: Any) -> np.ndarray:
        """Return a value of `run` as an array; see `Backend.to_numpy`.

        Args:
            value: output of `run`.
        """
        return value if isinstance(value, np.ndarray) else value.numpy()

    def close(self) -> None:
        """Drop all sessions; see `Backend.close`.

        An arena returns to the system only at the end of a run: a last run on the smallest image releases it.
        """
        with self._locks["encoder"]:
            encoder = next(iter(self._sessions["encoder"].values()), None)
        super().close()
        if self._device is None and encoder is not None:
            side = self._bundle.manifest.size_multiple
            with suppress(Exception):  # as in `run`; a closed backend has nothing to report
                encoder.run(None, {"image": np.zeros((1, 3, side, side), np.float32)}, self._returning)

    def _ending(self, inputs: Mapping[str, Any]) -> Any:
        """Return the options of the last run of an image: they release the arena where it should be released."""
        before, self._shape = self._shape, np.shape(inputs["latent_restored"])
        return self._returning if self._large or before not in ((), self._shape) else None

    def _open(self, component: str, values: dict[str, np.ndarray], shapes: Shapes) -> Any:
        path = self._bundle.path(self._files.onnx[component])
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if self._device is None:
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.enable_mem_pattern = False
        if self._options.num_threads is not None:
            options.intra_op_num_threads = self._options.num_threads
        try:
            if self._device is None and self._large and component.startswith("unet"):
                return self._lend(component, path, options, values)
            if values:
                arrays = [self._ort.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
                options.add_external_initializers(list(values), arrays)
            disabled = COPYING if self._large and self._device is None else []
            session = self._ort.InferenceSession(
                str(path), options, providers=self._providers(), disabled_optimizers=disabled
            )
        except DODRuntimeError:
            raise
        except Exception as error:  # as in `run`
            kind = BundleError if self._device is None else BackendError
            raise kind(f"ONNX Runtime {self._ort.__version__} cannot load {path}: {_first_line(error)}") from error
        if self._device is not None and session.get_providers()[0] != CUDA:
            raise BackendError("ONNX Runtime fell back to the CPU: its CUDA provider does not start on this machine")
        return session

    def _lend(self, component: str, path: Path, options: Any, values: dict[str, np.ndarray]) -> Any:
        """Return a session that uses `values` and the stored weights in place: it copies and packs nothing.

        It opens at once and runs about 20 % slower. Optimizers are off, because some compute with the values of the
        graph's own initializers. ONNX Runtime ignores names that the graph does not have, so they are checked here.
        """
        graph = path.read_bytes()
        for name in values:
            if _field_of_name(name) not in graph:
                raise BundleError(f"cannot merge: the graph {component} holds no initializer {name!r}")
        stored = read_tensors(self._bundle.path(self._files.weights[component]), map_file)
        lent = {name: self._ort.OrtValue.ortvalue_from_numpy(value) for name, value in (stored | values).items()}
        for name, value in lent.items():
            options.add_initializer(name, value)
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = self._ort.InferenceSession(str(path), options, providers=self._providers())
        self._lent[session] = list(lent.values())
        return session

    def _providers(self) -> list[Any]:
        return [CPU] if self._device is None else [(CUDA, {"device_id": self._device}), CPU]


def _field_of_name(name: str) -> bytes:
    """Return the bytes by which a graph's file names an initializer: field 8, `name`, of ONNX's TensorProto."""
    text = name.encode()
    size = len(text)
    return b"\x42" + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + text


@cache
def _make_arena() -> None:
    """Create the arena of this process, which sessions use on request. It grows by exactly what is requested."""
    import onnxruntime as ort

    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
