"""The process that runs a bundle's backend: its end is reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from export.errors import ParityError
from export.parity.bundle_process import ReferenceStore, bundle_process
from export.parity.runs import ParityRun, ParitySample, ParityStep
from tests.export.parity.stand_ins import bundle


class Fatal:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_process_that_is_killed_is_reported(tmp_path: Path) -> None:
    step = ParityStep("onnx fp32", "fp32", "onnxruntime_cpu", "fp32")
    with (
        pytest.raises(ParityError, match=r"onnx fp32 on path rain was killed.*--images"),
        bundle_process(step, bundle(), ReferenceStore(tmp_path)) as check,
    ):
        check([ParityRun("rain", (), cast(ParitySample, Fatal()))])


def test_the_reference_store_keeps_the_values_of_each_run(sample: ParitySample, tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path)
    runs = [ParityRun(path, (), sample) for path in ("auto", "rain")]
    for i, run in enumerate(runs):
        store.save(run, {"image": np.full((1, 3, 2, 2), i, np.float32)})
    assert [float(store.load(run)["image"].max()) for run in runs] == [0, 1]
