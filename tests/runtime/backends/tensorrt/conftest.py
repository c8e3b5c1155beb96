"""Engines of TensorRT-RTX, really built on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod_runtime import Restorer
from dod_runtime.backends import unavailable_reason
from dod_runtime.backends.base import BackendOptions
from dod_runtime.backends.gpu import find_gpu
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BackendError

NAME = "tensorrt_rtx"


@pytest.fixture(scope="session")
def engines(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy with engines for the GPU of this machine, or without one for compute capability 8.6."""
    pytest.importorskip(NAME)
    from tests.runtime.toy_engines import with_engines

    try:
        capability = find_gpu(0).compute_capability
    except BackendError:
        capability = "8.6"
    return Bundle.open(with_engines(toy, tmp_path_factory.mktemp("engines") / "bundle", NAME, capability))


@pytest.fixture
def on_gpu(engines: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restorer:
    """The toy on the GPU of this machine, with an empty cache of kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reason = unavailable_reason(NAME, engines, BackendOptions())
    if reason:
        pytest.skip(reason)
    return Restorer(engines, backend=NAME)
