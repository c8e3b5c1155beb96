"""GPU memory, as far as it can be tested without a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from dod_runtime.backends.tensorrt.device_memory import DeviceMemory, DeviceTensor, call, load_cudart
from dod_runtime.errors import BackendError
from tests.runtime.backends.marks import without_gpu


def test_tensor_sizes() -> None:
    assert DeviceTensor(0, (2, 3, 4), np.dtype(np.float16)).bytes == 48
    assert DeviceTensor(0, (0, 3), np.dtype(np.float32)).bytes == 1


@without_gpu
def test_errors_of_cuda_have_their_number() -> None:
    pytest.importorskip("cuda.bindings")
    with pytest.raises(BackendError, match=r"cudaGetDeviceCount: .*cudaError \d+"):
        call(load_cudart().cudaGetDeviceCount)
    with pytest.raises(BackendError, match="cudaError"):
        DeviceMemory(0)
