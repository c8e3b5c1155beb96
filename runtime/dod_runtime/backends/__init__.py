"""What runs the graphs of a bundle. Each backend says whether it can run here, and is loaded only when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.schema import REDUCED
from ..errors import BackendError, unknown
from .base import Backend, Options

__all__ = [
    "BACKENDS",
    "ON_CPU",
    "Backend",
    "Options",
    "check_precision",
    "open_backend",
    "available_backends",
    "unavailable_reason",
]

# In the order in which backend="auto" tries them.
MODULES = {
    "tensorrt": "tensorrt.backend",
    "tensorrt_rtx": "tensorrt.backend",
    "onnxruntime_cuda": "onnxruntime",
    "openvino": "openvino.backend",
    "onnxruntime_cpu": "onnxruntime",
}
BACKENDS = tuple(MODULES)
ON_CPU = ("openvino", "onnxruntime_cpu")
GROUPS = {"auto": BACKENDS, "onnxruntime": ("onnxruntime_cuda", "onnxruntime_cpu")}


def _module(name: str) -> Any:
    return import_module(f".{MODULES[name]}", __name__)


def unavailable_reason(name: str, bundle: Bundle, options: Options) -> str | None:
    """Why the backend `name` cannot run this bundle on this machine; None where it can."""
    return _module(name).unavailable_reason(name, bundle, options)


def available_backends(bundle: Bundle, options: Options | None = None) -> dict[str, str | None]:
    """For each backend, in the order of preference, why it cannot run here; None where it can."""
    return {name: unavailable_reason(name, bundle, options or Options()) for name in BACKENDS}


def open_backend(name: str, bundle: Bundle, options: Options) -> tuple[Backend, str]:
    """Opens the first backend of `name` that can run here, and says why it was that one.

    name: one of `BACKENDS`, `auto`, or `onnxruntime` (on CUDA, else on the CPU). Raises UsageError for any other and
    BackendError, with all reasons and with what can run instead, where none can.
    """
    if name not in BACKENDS and name not in GROUPS:
        raise unknown("backend", name, [*GROUPS, *BACKENDS])
    check_precision(options.precision, bundle)
    reasons: dict[str, str] = {}
    for candidate in GROUPS.get(name, (name,)):
        reason = unavailable_reason(candidate, bundle, options)
        if reason is None:
            try:
                backend: Backend = _module(candidate).open_backend(candidate, bundle, options)
            except BackendError as error:
                reason = str(error)
            else:
                return backend, _because(name, candidate, reasons)
        reasons[candidate] = reason
    raise BackendError(_refusal(name, bundle, options, reasons))


def check_precision(name: str, bundle: Bundle) -> None:
    """Raises UsageError for a precision that no backend could have with this bundle's graphs."""
    valid = ["auto", *bundle.manifest.precisions]
    valid += [reduced for reduced, graphs in REDUCED.items() if graphs in valid]
    if name not in valid:
        raise unknown("precision", name, valid)


def _because(asked: str, taken: str, reasons: Mapping[str, str]) -> str:
    if asked == taken:
        return "asked for"
    others = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"the first that can run here ({others})" if others else "the first choice, and it can run here"


def _refusal(asked: str, bundle: Bundle, options: Options, reasons: Mapping[str, str]) -> str:
    why = "; ".join(f"{name}: {reason}" if name != asked else reason for name, reason in reasons.items())
    rest = [name for name in BACKENDS if name not in reasons and unavailable_reason(name, bundle, options) is None]
    if asked == "auto":
        return f"no backend can run this bundle here: {why}"
    return f"backend {asked} cannot run here: {why}. What can run here: {', '.join(rest) or 'nothing'}"
