"""The models of the latency benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.latency_models import REFIT_ROUNDS, time_refits
from dod_runtime.restorer import Restorer


def test_refits_are_timed_and_their_images_compared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with Restorer(tiny_bundle, backend="onnxruntime_cpu", num_threads=1) as restorer:
        conditions = restorer.conditions[1:]
        found = time_refits(restorer, conditions, pixels)
        assert len(found.seconds) == REFIT_ROUNDS * len(conditions) and min(found.seconds) >= 0 and found.same
        restore, calls = restorer.restore, iter(range(100))

        def changing(*arguments: Any, **options: Any) -> np.ndarray:
            return np.asarray(restore(*arguments, **options)) // (1 + (next(calls) > 2))

        monkeypatch.setattr(restorer, "restore", changing)
        assert not time_refits(restorer, conditions, pixels).same
