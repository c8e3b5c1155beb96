"""The artefacts of the engines."""

from __future__ import annotations

import pytest

from export.steps import engines
from export.steps.engines import artifacts
from tests.export.conftest import MakePlan


def test_an_engine_needs_its_graph_weights_and_condition(make: MakePlan) -> None:
    listed = {each.name: each.needs for each in artifacts(make("rain_1.png"), dict)}
    folder = "engines/tensorrt_rtx"
    assert listed.keys() == {
        f"{folder}/{name}.engine" for name in ("unet_dynamic", "unet_rain", "decoder", "encoder", "mfm")
    }
    assert listed[f"{folder}/encoder.engine"] == ("onnx/fp16/encoder.onnx", "onnx/fp16/encoder.safetensors")
    merged = ("onnx/fp16/unet_merged.onnx", "onnx/fp16/unet.safetensors", "conditions/rain.safetensors")
    assert listed[f"{folder}/unet_rain.engine"] == merged


def test_a_refitted_engine_is_bound_to_the_gpu_and_to_no_condition(
    make: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "gpu_here", lambda: type("Gpu", (), {"name": "a GPU"}))
    listed = {each.name: each for each in artifacts(make("rain_1.png", refit=True), dict)}
    merged = listed["engines/tensorrt_rtx/unet_merged.engine"]
    assert merged.inputs["gpu"] == "a GPU" and merged.inputs["refittable"]
    assert not any(name.startswith("conditions") for name in merged.needs)
    assert listed["engines/tensorrt_rtx/decoder.engine"].inputs["gpu"] is None
    assert not any("rain" in name for name in listed)
