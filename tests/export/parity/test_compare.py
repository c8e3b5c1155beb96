"""Parity results: correct by hand, strict at their thresholds, and gates that fail no build."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export.errors import ParityError
from export.parity.compare import THRESHOLDS, check, compare_output, passed_gates, psnr_db, snr_db
from export.report import parity_table


def test_snr_and_psnr_by_hand() -> None:
    reference, value = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    assert snr_db(reference, value) == pytest.approx(10 * math.log10(25 / 0.25)) == pytest.approx(20)
    image = np.zeros((1, 3, 2, 2), np.float32)
    assert psnr_db(image, image + 0.02) == pytest.approx(40, abs=1e-4)  # 20 log10(2 / 0.02)
    assert psnr_db(image + 1, image + 7) == math.inf, "clipped to the range of an image"
    assert snr_db(reference, reference) == psnr_db(image, image) == math.inf


def test_snr_is_computed_in_float64() -> None:
    reference = np.full(10, 1000, np.float16)  # its square overflows in float16
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
def test_results_just_above_and_below_their_thresholds(component: str, step: str) -> None:
    metric, minimum = THRESHOLDS[component, step]
    make = of_snr if metric == "snr_db" else of_psnr
    above = compare_output("a.png", "auto", component, step, *make(minimum + 0.01))
    below = compare_output("a.png", "auto", component, step, *make(minimum - 0.01))
    assert above.passed and not below.passed
    assert above.threshold == below.threshold == f"{metric[:-3].upper()} >= {minimum:g} dB"
    assert getattr(below, metric) == pytest.approx(minimum - 0.01, abs=1e-3)
    assert (above.psnr_db is None) == (component != "pipeline")


def test_a_component_without_a_threshold_is_only_measured() -> None:
    shown = compare_output("a.png", "auto", "decoder", "onnx fp16", *of_snr(3))
    assert shown.passed and shown.threshold is None and shown.psnr_db is None
    assert shown.snr_db == pytest.approx(3) and shown.max_abs == pytest.approx(10**-0.15)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", ["onnx fp32", "torch fp16"])
def test_values_that_are_not_finite_fail(wrong: float, step: str) -> None:
    value = np.zeros((1, 3, 4, 4), np.float16)
    value[0, 0] = wrong
    found = compare_output("a.png", "auto", "pipeline", step, np.full(value.shape, 0.5, np.float32), value)
    assert not found.passed and not found.snr_db > 0


def test_a_gate_decides_and_fails_no_build() -> None:
    missed = compare_output("a.png", "auto", "pipeline", "openvino bf16", *of_psnr(44))
    met = compare_output("b.png", "auto", "pipeline", "openvino bf16", *of_psnr(46))
    isolated = compare_output("a.png", "auto", "encoder", "openvino bf16", *of_snr(10))
    assert not missed.passed and met.passed and isolated.passed
    check([missed, met, isolated])
    assert passed_gates("openvino", [met, isolated]) == ["bf16"]
    assert passed_gates("openvino", [met, missed]) == passed_gates("openvino", []) == []
    assert passed_gates("onnxruntime", [met]) == []
    text = parity_table([met, missed])
    assert "not offered" in text and "44.0" in text and "FAILED" not in text
    assert "not offered" not in parity_table([met])
    with pytest.raises(ParityError, match=r"1 of 2 .* openvino fp32 of pipeline on a\.png .*69\.0 dB"):
        check([missed, compare_output("a.png", "auto", "pipeline", "openvino fp32", *of_snr(69))])
