"""The components that run on each condition path, and the decisions of the gate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dod_runtime import Bundle, Restorer
from dod_runtime.condition_path import ConditionPath
from dod_runtime.pipeline import components_of

AUTO, HAZE, NOISE = (ConditionPath(name) for name in ("auto", "haze", "noise"))


@pytest.fixture(scope="module")
def restorer(toy: Bundle) -> Iterator[Restorer]:
    with Restorer(toy, backend="onnxruntime_cpu", num_threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("condition", "components"),
    [
        ("auto", ["mfm", "encoder", "unet_dynamic", "decoder"]),
        ("haze", ["encoder", "unet_merged", "decoder"]),
    ],
)
def test_only_auto_runs_the_mfm(condition: str, components: list[str], restorer: Restorer, photo: np.ndarray) -> None:
    seen: list[tuple[str, float]] = []
    prepared = restorer.prepare(photo, condition)
    assert (prepared.crops is None) is (condition != "auto") and prepared.image.shape == (3, 96, 128)
    crops = None if prepared.crops is None else prepared.crops[None]
    given = prepared.image[None], crops, condition
    observed = restorer.run_components(*given, observe=lambda *pair: seen.append(pair))
    assert [name for name, _ in seen] == components and all(seconds >= 0 for _, seconds in seen)
    assert observed.dtype == np.float32
    np.testing.assert_array_equal(observed, restorer.run_components(*given))


def test_the_gate_runs_where_it_decides(gated: Bundle, photo: np.ndarray) -> None:
    assert components_of(gated, AUTO) == ("mfm", "gate", "encoder", "unet_dynamic", "decoder")
    assert components_of(gated, AUTO, bypass=False) == ("mfm", "encoder", "unet_dynamic", "decoder")
    assert components_of(gated, HAZE) == ("encoder", "unet_merged", "decoder")
    assert components_of(gated, NOISE) == ("gate", "encoder", "unet_merged", "decoder")
    with Restorer(gated, "onnxruntime_cpu", num_threads=1) as restorer:
        assert restorer.prepare(photo, "haze").crops is None and restorer.prepare(photo, "noise").crops is not None
        found = list(restorer.restore_many([photo, 255 - photo // 8], batch_size=2, details=True))
        assert found[0].bypass_share < found[1].bypass_share
        alone = restorer.restore(photo, details=True)
        assert alone.bypass_share == pytest.approx(found[0].bypass_share, abs=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime_cpu", "openvino"])
def test_the_gate_decides_on_auto_and_never_on_a_named_path(
    backend: str, gated: Bundle, ungated: Bundle, photo: np.ndarray
) -> None:
    dark, bright = 40 + photo // 8, 200 - photo // 8
    with (
        Restorer(gated, backend, num_threads=1) as restorer,
        Restorer(ungated, "onnxruntime_cpu", num_threads=1) as plain,
    ):
        for image, least, most in ((dark, 0.0, 0.1), (bright, 0.9, 1.0)):
            assert least <= restorer.restore(image, details=True).bypass_share <= most
            prepared = restorer.prepare(image)
            given = prepared.image[None], prepared.crops[None]  # type: ignore[index]
            decisions = restorer.decide(1, given[1], "auto")
            share, added = decisions["share"].item(), decisions["gains"].sum()
            expected = (1 - share) * plain.run_components(*given) + share * (given[0] + added)
            np.testing.assert_allclose(restorer.run_components(*given), expected, atol=1e-3)
        for image in (dark, bright):
            named = restorer.restore(image, "haze", details=True)
            assert named.bypass_share == 0
            difference = named.image.astype(int) - plain.restore(image, "haze")
            assert np.abs(difference).max() <= (0 if backend == "onnxruntime_cpu" else 1)
        bypassed = restorer.restore(dark, "noise", details=True)
        assert bypassed.bypass_share == 1
        change = bypassed.image.astype(int) - dark
        assert change.max() - change.min() <= 1 and change.any(), "only the kernel's constant was added"


def test_the_bypass_can_be_switched_off(gated: Bundle, ungated: Bundle, photo: np.ndarray) -> None:
    bright = 255 - photo // 8
    with (
        Restorer(gated, "onnxruntime_cpu", num_threads=1, bypass=False) as restorer,
        Restorer(ungated, "onnxruntime_cpu", num_threads=1) as plain,
    ):
        for condition in ("auto", "haze", "noise"):
            found = restorer.restore(bright, condition, details=True)
            assert found.bypass_share == 0
            np.testing.assert_array_equal(found.image, plain.restore(bright, condition))
