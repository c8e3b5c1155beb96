"""Tracing in worker processes: a killed worker is reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from export.errors import GraphError
from export.graphs.trace_workers import TraceJob, trace_all


class Ended:
    """Ends the process that unpickles it, as the system does when memory runs out."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported(tmp_path: Path) -> None:
    job = TraceJob("mfm.onnx", "fp32", "mfm", tmp_path / "mfm.onnx", tmp_path / "mfm.safetensors", 20)
    meta_copies: dict[str, Any] = {"fp32": Ended()}
    with pytest.raises(GraphError, match="killed.*--workers 1"):
        list(trace_all(meta_copies, [job, job], 1))
