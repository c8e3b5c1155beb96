"""Marks for tests that depend on the machine."""

from __future__ import annotations

import pytest

from dod_runtime.backends.gpu import find_gpu
from dod_runtime.errors import BackendError


def has_gpu() -> bool:
    try:
        find_gpu(0)
    except BackendError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="needs a machine without a GPU")
