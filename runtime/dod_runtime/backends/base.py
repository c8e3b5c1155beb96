"""Parts that all backends share: their protocol, options and description, and choices that depend on no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

__all__ = ["Backend", "BackendInfo", "BackendOptions", "Shapes", "choose_precision", "cpu_place", "kept_sessions"]

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""Shapes of the inputs of a component, in the order of the manifest."""


@dataclass(frozen=True)
class BackendOptions:
    """Options of the caller that every backend takes.

    Attributes:
        device: index of the GPU; CPU backends ignore it.
        precision: `auto`, or the precision to compute in, such as `fp16`.
        num_threads: number of CPU threads, None for all cores; GPU backends ignore it.
    """

    device: int = 0
    precision: str = "auto"
    num_threads: int | None = None


@dataclass(frozen=True)
class BackendInfo:
    """Description of an open backend, and why it was chosen.

    Attributes:
        name: name of the backend, such as `onnxruntime_cpu`.
        version: version of its library.
        device: the device that it computes on, such as `CPU, 4 threads` or `GPU 0, NVIDIA L4`.
        precision: precision it computes in, such as `fp16`.
        reason: why it was chosen.
        skipped: backends that were preferred and cannot run here, each with the reason.

    Example:
        >>> print(BackendInfo("openvino", "2026.4.1", "CPU, 4 threads", "fp32"))
        openvino 2026.4.1 on CPU, 4 threads, fp32
    """

    name: str
    version: str
    device: str
    precision: str
    reason: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        return f"{self.name} {self.version} on {self.device}, {self.precision}"


class Backend(Protocol):
    """Protocol of a backend, which runs the components of a bundle by name.

    Values that `run` returns stay on the device, for example on a GPU, until `to_numpy` fetches them.

    Attributes:
        info: description of the backend.
        conditions: names of the condition paths that it can run, `auto` included.
    """

    info: BackendInfo
    conditions: tuple[str, ...]

    def open(self, path: Mapping[str, Shapes], condition: str | None = None) -> None:
        """Load everything that `run` needs for a path. Without this call `run` loads each component at its first use.

        Call it inside `batch`.

        Args:
            path: components of the path, each with the shapes of its inputs.
            condition: condition that is merged into the UNet, None for the dynamic path.

        Raises:
            BackendError: a component cannot be loaded.
            BundleError: a file of the bundle is missing or was changed.
        """
        ...

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, Any]:
        """Run one component. Call it inside `batch`.

        Args:
            component: name of the component.
            inputs: arrays, or values that an earlier `run` in the same `batch` returned, by name.
            condition: condition that is merged into the UNet; only `unet_merged` needs it.

        Returns:
            The outputs by name, on the device.

        Raises:
            BackendError: the component cannot be loaded, or fails.
            BundleError: a file of the bundle is missing or was changed.
            UsageError: the condition is unknown.
        """
        ...

    def to_numpy(self, value: Any) -> np.ndarray:
        """Return a value of `run` as an array.

        Args:
            value: output of `run`, from the same `batch`.
        """
        ...

    def batch(self, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """Return the context in which the components of one batch run, undisturbed by other threads.

        Args:
            shape: shape of the batch, such as `[B, 3, H, W]`; buffers are kept by it.
        """
        ...

    def stopwatch(self) -> Callable[[], float]:
        """Start a clock on the device.

        Returns:
            A function that waits for all work so far and returns the seconds since the start.
        """
        ...

    def close(self) -> None:
        """Free sessions and memory. A second call does nothing."""
        ...


def choose_precision(requested: str, offered: tuple[str, ...], preferred: str) -> str | None:
    """Return the precision to compute in.

    Args:
        requested: precision that the caller names, or `auto`.
        offered: precisions that the bundle has for the backend.
        preferred: precision that `auto` takes where it is offered.

    Returns:
        The precision, None where the requested one is not offered.

    Example:
        >>> choose_precision("auto", ("fp16", "fp32"), "fp32")
        'fp32'
        >>> choose_precision("bf16", ("fp16", "fp32"), "fp32") is None
        True
    """
    if requested != "auto":
        return requested if requested in offered else None
    return preferred if preferred in offered else next(iter(offered), None)


def cpu_place(num_threads: int | None) -> str:
    """Return the device of a CPU backend in words.

    Args:
        num_threads: number of threads, None for all cores.

    Example:
        >>> cpu_place(None), cpu_place(1), cpu_place(4)
        ('CPU', 'CPU, 1 thread', 'CPU, 4 threads')
    """
    return "CPU" if num_threads is None else f"CPU, {num_threads} thread{'s' if num_threads > 1 else ''}"


def kept_sessions(weight_bytes: int, limit: int = 4 << 30, most: int = 8) -> int:
    """Return the number of merged UNets that stay loaded, at least one.

    Args:
        weight_bytes: size of the weights of one UNet in bytes.
        limit: bytes that the weights of all of them may take.
        most: largest number.
    """
    return max(1, min(most, limit // max(1, weight_bytes)))
