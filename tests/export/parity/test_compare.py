"""The figures: right by hand, and strict at their budget."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export.parity.compare import THRESHOLDS, figure, psnr_db, snr_db


def test_snr_and_psnr_by_hand() -> None:
    reference, value = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    assert snr_db(reference, value) == pytest.approx(10 * math.log10(25 / 0.25)) == pytest.approx(20)
    image = np.zeros((1, 3, 2, 2), np.float32)
    assert psnr_db(image, image + 0.02) == pytest.approx(40, abs=1e-4)  # 20 log10(2 / 0.02)
    assert psnr_db(image + 1, image + 7) == math.inf, "clipped to the range of an image"
    assert snr_db(reference, reference) == psnr_db(image, image) == math.inf


def test_snr_is_computed_in_float64() -> None:
    reference = np.full(10, 1000, np.float16)  # squared, beyond what half can hold
    assert snr_db(reference, reference + np.float16(1)) == pytest.approx(60)


def test_snr_against_numpy() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(2, 3, 4))
    value = reference + 0.01 * generator.normal(size=reference.shape)
    noise = np.linalg.norm(value - reference)
    assert snr_db(reference, value) == pytest.approx(20 * np.log10(np.linalg.norm(reference) / noise))
    assert psnr_db(reference / 9, value / 9) == pytest.approx(20 * np.log10(2 * math.sqrt(24) / (noise / 9)))


def of_snr(snr: float) -> tuple[np.ndarray, np.ndarray]:
    reference = np.ones((1, 3, 8, 8))
    return reference, reference * (1 + 10 ** (-snr / 20))


def of_psnr(psnr: float) -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros((1, 3, 8, 8))
    return reference, reference + 2 * 10 ** (-psnr / 20)


@pytest.mark.parametrize(("component", "step"), THRESHOLDS)
def test_figures_at_the_edge_of_their_budget(component: str, step: str) -> None:
    kind, least = THRESHOLDS[component, step]
    make = of_snr if kind == "snr_db" else of_psnr
    above = figure("a.png", "auto", component, step, *make(least + 0.01))
    below = figure("a.png", "auto", component, step, *make(least - 0.01))
    assert above.passed and not below.passed
    assert above.threshold == below.threshold == f"{kind[:-3].upper()} >= {least:g} dB"
    assert getattr(below, kind) == pytest.approx(least - 0.01, abs=1e-3)
    assert (above.psnr_db is None) == (component != "pipeline")


def test_a_component_without_a_budget_is_only_shown() -> None:
    shown = figure("a.png", "auto", "decoder", "onnx fp16", *of_snr(3))
    assert shown.passed and shown.threshold is None and shown.psnr_db is None
    assert shown.snr_db == pytest.approx(3) and shown.max_abs == pytest.approx(10**-0.15)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", ["onnx fp32", "torch fp16"])
def test_what_is_not_finite_fails(wrong: float, step: str) -> None:
    value = np.zeros((1, 3, 4, 4), np.float16)
    value[0, 0] = wrong
    found = figure("a.png", "auto", "pipeline", step, np.full(value.shape, 0.5, np.float32), value)
    assert not found.passed and not found.snr_db > 0
