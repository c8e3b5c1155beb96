"""Detection of NVIDIA GPUs."""

from __future__ import annotations

import pytest

from dod_runtime.backends.gpu import Gpu, find_gpu
from dod_runtime.errors import BackendError
from tests.runtime.backends.marks import without_gpu


@without_gpu
def test_without_a_gpu_there_is_a_reason() -> None:
    with pytest.raises(BackendError, match="NVIDIA"):
        find_gpu(0)


def test_slug() -> None:
    assert Gpu("NVIDIA GeForce RTX 4090 (Laptop)", "8.9", "13.0").slug == "nvidia-geforce-rtx-4090-laptop"


@pytest.mark.gpu
def test_find_gpu() -> None:
    gpu = find_gpu(0)
    assert gpu.name and "." in gpu.compute_capability
    with pytest.raises(BackendError, match="no GPU 99"):
        find_gpu(99)
