"""Parity results: as JSON, in the manifest, and as a verdict."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.parity.compare import ParityResult, compare_output
from export.results import manifest_rows, margin, read_results, rows, verdict, write_results
from tests.export.parity.test_compare import of_psnr, of_snr

MANIFEST: dict[str, Any] = {
    "name": "mini",
    "conditions": {"haze": "conditions/haze.safetensors"},
    "precisions": {"fp32": {}, "fp16": {}},
    "targets": {
        "onnxruntime": {"precisions": ["fp32", "fp16"]},
        "openvino": {"precisions": ["fp32"]},
        "tensorrt_rtx": {"precisions": ["fp16"], "engines": {"mfm": "m.engine", "decoder": "d.engine"}},
    },
}


def result(
    step: str, decibels: float, image: str = "a.png", path: str = "auto", component: str = "pipeline"
) -> ParityResult:
    arrays = of_psnr(decibels) if component == "pipeline" and step in ("torch fp16", "openvino bf16") else None
    return compare_output(image, path, component, step, *(arrays or of_snr(decibels)))


def test_results_survive_the_file(tmp_path: Path) -> None:
    reference, value = of_psnr(50)
    results = [
        compare_output("a.png", "auto", "pipeline", "torch fp16", reference + 0.5, value + 0.5),
        compare_output("a.png", "auto", "pipeline", "onnx fp32", reference, reference),
        compare_output("a.png", "auto", "encoder", "onnx fp32", reference, reference),
        compare_output("b.png", "auto", "pipeline", "torch fp16", reference, value * np.inf),
    ]
    write_results(results, tmp_path / "parity.json")
    assert read_results(tmp_path / "parity.json") == results
    json.dumps(rows(results[:3]), allow_nan=False)


def test_the_manifest_has_what_the_runtime_decides_by() -> None:
    results = [
        result("openvino bf16", 47, "a.png"),
        result("openvino bf16", 41, "b.png"),
        result("openvino bf16", 46, "b.png", "haze"),
        result("torch fp16", 60, component="unet_dynamic"),
        result("torch fp16", 58, "b.png", component="unet_dynamic"),
        result("torch fp16", 50, component="decoder"),
        result("onnx fp32", 90),
        result("onnx fp32", 90, path="haze"),
    ]
    found = manifest_rows(results, ("auto", "haze"))
    assert [(row["path"], row["component"], row["step"], row["image"], row["passed"]) for row in found] == [
        ("auto", "pipeline", "openvino bf16", "b.png", False),
        ("haze", "pipeline", "openvino bf16", "b.png", True),
        ("auto", "pipeline", "onnx fp32", "a.png", True),
        ("haze", "pipeline", "onnx fp32", "a.png", True),
        ("auto", "unet_dynamic", "torch fp16", "b.png", True),
    ]
    assert found[0]["psnr_db"] == 41 and found[2]["snr_db"] == 90 and found[4]["snr_db"] == 58
    assert "45" in found[0]["threshold"] and found[4]["threshold"] is None


@pytest.mark.parametrize(("factor", "decibels"), [(1.0, None), (np.inf, 0.0), (np.nan, 0.0)])
def test_the_manifest_has_finite_numbers_only(factor: float, decibels: float | None) -> None:
    reference = of_psnr(50)[0] + 0.5
    lost = compare_output("a.png", "auto", "pipeline", "onnx fp32", reference, reference * factor)
    (row,) = manifest_rows([lost], ("auto",))
    assert row["snr_db"] == decibels and row["passed"] is (decibels is None)
    json.dumps(row, allow_nan=False)


def test_a_path_that_no_runtime_ran_has_a_row() -> None:
    ran = [result("onnx fp32", 90), result("merged", 90, path="rain")]
    ran.append(result("onnx fp32", 90, path="rain", component="unet_merged"))
    (row,) = (row for row in manifest_rows(ran, ("auto", "rain")) if row["passed"] is None)
    assert row["path"] == "rain"
    checked = manifest_rows([*ran, replace(ran[0], path="rain")], ("auto", "rain"))
    assert checked and all(row["passed"] for row in checked)


def test_margin() -> None:
    assert margin(result("onnx fp32", 90)) == pytest.approx(10, abs=0.01)
    assert margin(result("torch fp16", 44)) == pytest.approx(-1, abs=0.01)
    assert margin(result("onnx fp32", 90, component="decoder")) is None
    reference, value = of_psnr(50)
    assert margin(compare_output("a.png", "auto", "pipeline", "onnx fp32", reference, reference)) == math.inf
    for lost in (np.inf, np.nan):
        assert margin(compare_output("a.png", "auto", "pipeline", "onnx fp32", reference, value * lost)) == -math.inf


def test_the_verdict_names_the_worst_margin_and_what_was_not_checked() -> None:
    results = [
        result("onnx fp32", 90),
        result("onnx fp32", 83, "b.png", "haze"),
        result("onnx fp32", 10, component="decoder"),
        result("openvino bf16", 41),
    ]
    built, parity, unchecked = verdict(MANIFEST, results)
    assert all(word in built for word in ("mini", "auto, haze", "openvino (fp32)", "tensorrt_rtx (fp16, 2 engines)"))
    assert all(word in parity for word in ("all 2", "3.0 dB", "onnx fp32", "b.png", "haze", "SNR >= 80 dB"))
    assert all(word in parity for word in ("bf16 on openvino", "41.0 dB", "not offered"))
    assert all(word in unchecked for word in ("tensorrt_rtx", "fp16", "GPU"))
    assert "haze" not in unchecked and "bf16" not in unchecked
    assert all(word in verdict(MANIFEST, results[:1])[2] for word in ("haze", "bf16 on openvino"))
    _, missed, _ = verdict(MANIFEST, [*results, result("torch fp16", 44)])
    assert "1 of 3" in missed and "-1.0 dB" in missed and "torch fp16" in missed


def test_the_verdict_of_a_small_build() -> None:
    targets = {"onnxruntime": {"precisions": ["fp32"]}}
    manifest = {**MANIFEST, "conditions": {}, "precisions": {"fp32": {}}, "targets": targets}
    assert "nothing" in verdict(manifest, [result("onnx fp32", 90)])[2]
