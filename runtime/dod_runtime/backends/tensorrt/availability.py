"""Checks whether TensorRT and TensorRT-RTX can run the engines of a bundle on this machine."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ...bundle.bundle import Bundle
from ...bundle.schema import TargetEntry
from ...errors import BackendError
from ..base import BackendOptions, choose_precision
from ..gpu import Gpu, find_gpu
from .device_memory import call, load_cudart
from .engine import logger_of

__all__ = [
    "NEEDED",
    "diagnosis",
    "gpu_reason",
    "is_installed",
    "load_library",
    "machine_reason",
    "unavailable_reason",
    "version_reason",
]

PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
"""Packages that install the libraries."""
HEADER_BYTES = 64
"""Length of the part of an engine that TensorRT-RTX checks without deserializing it."""
NEEDED = ("encoder", "decoder")
"""Components that every path needs; their engines are loaded at once."""


def unavailable_reason(name: str, bundle: Bundle, options: BackendOptions) -> str | None:
    """Return the reason why the engines of a target cannot run here, None where they can. Nothing is deserialized.

    The checks are, in this order: the target is in the bundle, the library is installed in the version of the engines,
    there is a driver and a GPU, the engines were built for this GPU, and the library accepts the header of an engine.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        bundle: the bundle to run.
        options: options of the caller.
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
        library = load_library(name)
        reason = version_reason(name, target, library.__version__)
        if reason:
            return reason
        gpu = find_gpu(options.device)
        _check_cuda(gpu)
        return gpu_reason(target, gpu) or _validity_reason(name, bundle, library)
    except BackendError as error:
        return str(error)


def machine_reason(name: str, options: BackendOptions) -> str | None:
    """Return the reason why the library cannot run any engine here, None if it can.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        options: options of the caller.
    """
    try:
        load_library(name)
        _check_cuda(find_gpu(options.device))
    except BackendError as error:
        return str(error)
    return None


def is_installed(name: str) -> bool:
    """Return True where the library is installed, whether or not there is a GPU.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
    """
    return find_spec(name) is not None


def load_library(name: str) -> Any:
    """Import the library of a target.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.

    Returns:
        Its module.

    Raises:
        BackendError: it cannot be imported.
    """
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"the library {name} cannot be imported ({error}); install it with: pip install {PACKAGES[name]}"
        ) from error


def version_reason(name: str, target: TargetEntry, installed: str) -> str | None:
    """Return the reason why engines do not fit the installed library, None where they do.

    TensorRT needs the very version of the engines, TensorRT-RTX the same major and minor version.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        target: the target of the bundle.
        installed: version of the installed library.
    """
    parts = None if name == "tensorrt" else 2
    if target.version.split(".")[:parts] == installed.split(".")[:parts]:
        return None
    return f"its engines were built with {name} {target.version}, and {installed} is installed"


def gpu_reason(target: TargetEntry, gpu: Gpu) -> str | None:
    """Return the reason why engines do not fit a GPU, None where they do.

    Engines of TensorRT-RTX fit the compute capabilities that they were built for; engines that were built on a GPU fit
    GPUs of that model only.

    Args:
        target: the target of the bundle.
        gpu: the GPU.
    """
    if gpu.compute_capability not in target.compute_capabilities:
        built = ", ".join(target.compute_capabilities)
        return f"its engines are for compute capability {built}, and {gpu.name} has {gpu.compute_capability}"
    if target.gpu and target.gpu != gpu.name:
        return f"its engines were built on {target.gpu}, and this is {gpu.name}"
    return None


def _check_cuda(gpu: Gpu) -> None:
    """Raise BackendError where the driver is too old for the installed CUDA runtime (cudaError 35)."""
    try:
        call(load_cudart().cudaGetDeviceCount)
    except BackendError as error:
        raise BackendError(f"the driver supports only CUDA {gpu.driver_cuda}: {error}; update the driver") from error


def _validity_reason(name: str, bundle: Bundle, library: Any) -> str | None:
    """Return the reason why TensorRT-RTX refuses the header of the encoder's engine, whose hash is verified first."""
    if not hasattr(library.Runtime, "get_engine_validity"):
        return None
    with bundle.path(bundle.manifest.targets[name].engines["encoder"]).open("rb") as file:
        header = file.read(HEADER_BYTES)
    log = logger_of(library)
    validity, diagnostics = library.Runtime(log).get_engine_validity(header)
    if validity != library.EngineValidity.INVALID:
        return None
    return f"{name} refuses its engines: {diagnosis(library, int(diagnostics)) or log.last or 'no reason given'}"


def diagnosis(library: Any, diagnostics: int) -> str:
    """Return the names of the bits that `get_engine_validity` set, in words.

    Args:
        library: the module `tensorrt_rtx`.
        diagnostics: the bits.
    """
    flags = library.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name.lower().replace("_", " ") for name, flag in flags if diagnostics & flag.value)
