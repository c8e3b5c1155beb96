"""Detection of NVIDIA GPUs through the driver alone, before any library is loaded."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from functools import lru_cache

from ..errors import BackendError

__all__ = ["Gpu", "find_gpu"]

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: name that the driver gives, such as `NVIDIA L4`.
        compute_capability: compute capability, such as `8.9`.
        driver_cuda: newest CUDA version that the driver supports, such as `13.0`.
    """

    name: str
    compute_capability: str
    driver_cuda: str

    @property
    def slug(self) -> str:
        """Name in lower-case letters, digits and hyphens, for file names."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-").lower()


@lru_cache(maxsize=16)
def find_gpu(device: int) -> Gpu:
    """Return a GPU of this machine.

    Args:
        device: index of the GPU, counted from 0.

    Raises:
        BackendError: there is no driver, no GPU, or no GPU of this index.
    """
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        raise BackendError(f"no NVIDIA driver ({name} was not found)") from error
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, NO_DEVICE):
        raise BackendError(f"the NVIDIA driver does not start (CUDA error {status})")
    if count.value == 0:
        raise BackendError("no NVIDIA GPU")
    if not 0 <= device < count.value:
        raise BackendError(f"no GPU {device}: this machine has {count.value}, counted from 0")
    handle, version = ctypes.c_int(), ctypes.c_int()
    text = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(handle), device)
    driver.cuDeviceGetName(text, len(text), handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(text.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}", cuda)
