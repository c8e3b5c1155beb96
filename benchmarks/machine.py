"""Description of the machine, its libraries, the date and the command, recorded with every result."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dod_runtime.backends.gpu import find_gpu
from dod_runtime.errors import BackendError

__all__ = ["machine_info", "machine_summary"]

LIBRARIES = (
    "torch",
    "diffusers",
    "peft",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "scikit-image",
)


def machine_info(device: int = 0) -> dict[str, Any]:
    """Describe the machine in JSON values.

    Args:
        device: index of the GPU.

    Returns:
        Processor, cores, memory in bytes, GPU (None without one), system, versions of Python and libraries, load
        average, date in UTC and command.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "gpu": _gpu(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }


def machine_summary(machine: dict[str, Any]) -> str:
    """Describe the machine in one line: processor, GPU, versions of PyTorch and the backends.

    Args:
        machine: result of `machine_info`.

    Returns:
        The line.
    """
    gpu = machine["gpu"]
    parts = [f"{machine['processor']}, {machine['cores']} cores", gpu["name"] if gpu else "no GPU"]
    names = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13")
    return "; ".join(
        [*parts, *(f"{name} {machine['libraries'][name]}" for name in names if name in machine["libraries"])]
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _gpu(device: int) -> dict[str, str] | None:
    try:
        gpu = find_gpu(device)
    except BackendError:
        return None
    return {"name": gpu.name, "compute_capability": gpu.compute_capability, "driver_cuda": gpu.driver_cuda}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
