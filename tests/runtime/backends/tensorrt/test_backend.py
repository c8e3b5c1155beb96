"""TensorRT-RTX on a GPU (mark `gpu`), and the conditions that engines allow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dod_runtime import Restorer
from dod_runtime.backends import unavailable_reason
from dod_runtime.backends.base import BackendOptions
from dod_runtime.backends.gpu import find_gpu
from dod_runtime.backends.tensorrt.backend import _conditions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import REFITTED, TargetEntry
from dod_runtime.errors import BackendError

NAME = "tensorrt_rtx"


def test_conditions_need_all_of_their_engines(toy: Bundle) -> None:
    assert _conditions(toy, TargetEntry(("fp16",), engines={"mfm": "", "unet_dynamic": "", "unet_haze": ""})) == (
        "auto",
        "haze",
    )
    refitted = TargetEntry(("fp16",), engines={"unet_dynamic": "", REFITTED: ""})
    assert _conditions(toy, refitted) == ("haze", "noise")
    assert _conditions(toy, TargetEntry(("fp16",), engines={"unet_dynamic": "", "unet_noise": ""})) == ("noise",)


@pytest.mark.gpu
@pytest.mark.parametrize("condition", ["auto", "haze", "noise"])
def test_agrees_with_onnxruntime(condition: str, on_gpu: Restorer, engines: Bundle, photo: np.ndarray) -> None:
    expected = Restorer(engines, backend="onnxruntime_cpu").restore(photo, condition)
    with on_gpu:
        found = on_gpu.restore(photo, condition)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2  # type: ignore[union-attr]


@pytest.mark.gpu
def test_switching_shapes_and_conditions_is_idempotent(on_gpu: Restorer, photo: np.ndarray) -> None:
    with on_gpu:
        first = on_gpu.restore(photo, "haze")
        for side in (10, 40, 50, 60, 90):
            on_gpu.restore(photo[:side, :side], "noise")
        np.testing.assert_array_equal(first, on_gpu.restore(photo, "haze"))


@pytest.mark.gpu
def test_one_engine_for_all_conditions(toy: Bundle, tmp_path: Path, photo: np.ndarray, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from tests.runtime.toy_engines import with_engines

    bundle = Bundle.open(with_engines(toy, tmp_path / "bundle", NAME, find_gpu(0).compute_capability, refit=True))
    reason = unavailable_reason(NAME, bundle, BackendOptions())
    if reason:
        pytest.skip(reason)
    with Restorer(bundle, backend=NAME) as restorer, Restorer(bundle, backend="onnxruntime_cpu") as reference:
        assert restorer.conditions == ("auto", "haze", "noise")
        first, other, again = (restorer.restore(photo, condition) for condition in ("haze", "noise", "haze"))
        np.testing.assert_array_equal(first, again)
        for found, condition in ((first, "haze"), (other, "noise")):
            expected = reference.restore(photo, condition)
            assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2  # type: ignore[union-attr]


@pytest.mark.gpu
def test_threads_take_turns(on_gpu: Restorer, photo: np.ndarray) -> None:
    jobs = [(photo[: 20 + i * 5], condition) for i, condition in enumerate(["haze", "noise", "auto"] * 4)]
    with on_gpu, ThreadPoolExecutor(3) as pool:
        serial = [on_gpu.restore(*job) for job in jobs]
        for one, other in zip(serial, pool.map(lambda job: on_gpu.restore(*job), jobs), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
def test_component_seconds_and_the_cache(on_gpu: Restorer, photo: np.ndarray, tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    prepared = on_gpu.prepare(photo)
    assert prepared.crops is not None
    with on_gpu:
        on_gpu.run_components(prepared.image[None], prepared.crops[None], observe=seen.__setitem__)
    assert set(seen) == {"mfm", "encoder", "unet_dynamic", "decoder"} and all(value > 0 for value in seen.values())
    assert list((tmp_path / "dod-runtime").glob("tensorrt_rtx-*.cache"))
    with pytest.raises(BackendError, match="was closed"):
        on_gpu.restore(photo)
