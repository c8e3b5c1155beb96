"""Registry of the backends that run the graphs of a bundle. Their libraries are loaded only when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.schema import REDUCED
from ..errors import BackendError, unknown
from .base import Backend, BackendInfo, BackendOptions

__all__ = [
    "BACKENDS",
    "ON_CPU",
    "Backend",
    "BackendInfo",
    "BackendOptions",
    "available_backends",
    "check_precision",
    "machine_reason",
    "open_backend",
    "unavailable_reason",
]

log = logging.getLogger("dod_runtime")

# In the order in which backend="auto" tries them.
MODULES = {
    "tensorrt": "tensorrt.backend",
    "tensorrt_rtx": "tensorrt.backend",
    "onnxruntime_cuda": "onnxruntime",
    "openvino": "openvino.backend",
    "onnxruntime_cpu": "onnxruntime",
}
BACKENDS = tuple(MODULES)
"""Names of all backends, in the order in which `auto` tries them."""
ON_CPU = ("openvino", "onnxruntime_cpu")
"""Names of the backends that compute on the CPU."""
GROUPS = {"auto": BACKENDS, "onnxruntime": ("onnxruntime_cuda", "onnxruntime_cpu")}
"""Names that stand for the first available backend of several."""


def _module(name: str) -> Any:
    return import_module(f".{MODULES[name]}", __name__)


def unavailable_reason(name: str, bundle: Bundle, options: BackendOptions) -> str | None:
    """Return the reason why a backend cannot run a bundle on this machine, None where it can.

    Args:
        name: one of `BACKENDS`.
        bundle: the bundle to run.
        options: options of the caller.
    """
    return _module(name).unavailable_reason(name, bundle, options)


def machine_reason(name: str, options: BackendOptions | None = None) -> str | None:
    """Return the reason why a backend cannot run any bundle on this machine, None if it can.

    Args:
        name: one of `BACKENDS`.
        options: options of the caller (default: GPU 0).
    """
    return _module(name).machine_reason(name, options or BackendOptions())


def available_backends(bundle: Bundle, options: BackendOptions | None = None) -> dict[str, str | None]:
    """Return for each backend the reason why it cannot run a bundle on this machine, None where it can.

    Args:
        bundle: the bundle to run.
        options: options of the caller (default: GPU 0, any precision, all cores).

    Returns:
        Reasons by backend, in the order in which `auto` tries them.
    """
    return {name: unavailable_reason(name, bundle, options or BackendOptions()) for name in BACKENDS}


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    """Open the first available backend. Its `info` has the reason for the choice and the backends that were skipped.

    The choice is logged at INFO. Skipped GPU backends whose library is installed are logged at WARNING where the choice
    fell on the CPU.

    Args:
        name: one of `BACKENDS`, `auto`, or `onnxruntime` (on CUDA, else on the CPU).
        bundle: the bundle to run.
        options: options of the caller.

    Returns:
        The open backend.

    Raises:
        UsageError: the name of the backend or of the precision is unknown.
        BackendError: no backend, or not the one that was named, can run here; the text has all reasons.
    """
    if name not in BACKENDS and name not in GROUPS:
        raise unknown("backend", name, [*GROUPS, *BACKENDS])
    check_precision(options.precision, bundle)
    skipped: dict[str, str] = {}
    for candidate in GROUPS.get(name, (name,)):
        reason = unavailable_reason(candidate, bundle, options)
        if reason is None:
            try:
                backend: Backend = _module(candidate).open_backend(candidate, bundle, options)
            except BackendError as error:
                reason = str(error)
            else:
                why = "requested" if candidate == name else f"first available backend of {name}"
                backend.info = replace(backend.info, reason=why, skipped=skipped)
                _log_choice(bundle, backend.info)
                return backend
        skipped[candidate] = reason
    raise BackendError(_refusal(name, bundle, options, skipped))


def check_precision(name: str, bundle: Bundle) -> None:
    """Check that some backend could compute in a precision with the graphs of a bundle.

    Args:
        name: name of the precision, or `auto`.
        bundle: the bundle to run.

    Raises:
        UsageError: the precision is unknown.
    """
    valid = ["auto", *bundle.manifest.precisions]
    valid += [reduced for reduced, graphs in REDUCED.items() if graphs in valid]
    if name not in valid:
        raise unknown("precision", name, valid)


def _log_choice(bundle: Bundle, info: BackendInfo) -> None:
    for name, reason in info.skipped.items():
        built = ("onnxruntime" if name == "onnxruntime_cuda" else name) in bundle.manifest.targets
        fell_back = built and name not in ON_CPU and info.name in ON_CPU and _module(name).is_installed(name)
        level = logging.WARNING if fell_back else logging.DEBUG
        log.log(level, "skipped backend %s: %s", name, reason)
    log.info("using %s (%s)", info, info.reason)


def _refusal(requested: str, bundle: Bundle, options: BackendOptions, skipped: Mapping[str, str]) -> str:
    reasons = "; ".join(reason if name == requested else f"{name}: {reason}" for name, reason in skipped.items())
    if requested == "auto":
        return f"no backend can run this bundle here: {reasons}"
    others = [name for name in BACKENDS if name not in skipped and unavailable_reason(name, bundle, options) is None]
    return f"backend {requested} cannot run here: {reasons}. Available: {', '.join(others) or 'none'}"
