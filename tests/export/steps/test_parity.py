"""The artefacts of the parity step: which files decide a path, and which images go through it."""

from __future__ import annotations

from dataclasses import replace

from export.parity.runs import ParitySample, condition_of, paths_of
from export.steps.parity import artifacts, comparison_file, record_file
from tests.export.conftest import MakePlan
from tests.export.parity.stand_ins import bundle


def unused(*_: object) -> None:
    raise AssertionError("listing artefacts needs no file")


def test_a_path_needs_the_files_that_it_runs(make: MakePlan) -> None:
    listed = {each.name: each for each in artifacts(make("rain_1.png", "street.png"), unused, unused)}  # type: ignore[arg-type]
    assert listed.keys() == {
        *(record_file(path) for path in ("auto", "haze", "rain")),
        "report/rain_1.png",
        "report/street.png",
    }
    auto, rain = (set(listed[record_file(path)].needs) for path in ("auto", "rain"))
    assert "onnx/fp32/unet_dynamic.onnx" in auto and "onnx/fp16/mfm.safetensors" in auto
    assert not any("merged" in name or name.startswith("conditions") for name in auto)
    assert {"onnx/fp16/unet_merged.onnx", "onnx/fp32/unet.safetensors", "conditions/rain.safetensors"} <= rain
    assert not any("dynamic" in name or "mfm" in name or "haze" in name for name in rain)
    assert listed["report/street.png"].make == listed[record_file("rain")].make, "made by one call"


def test_the_images_of_a_path_are_those_that_it_runs(make: MakePlan) -> None:
    plan = make("rain_1.png", "rain_2.png", "street.png")
    listed = {each.name: each.inputs["images"] for each in artifacts(plan, unused, unused)}  # type: ignore[arg-type]
    conditions = {name: f"conditions/{name}.safetensors" for name in plan.conditions}
    opened = bundle()
    opened.manifest = replace(opened.manifest, conditions=conditions)
    samples = [ParitySample(image.name, condition_of(image.name, plan.conditions), {}) for image in plan.images]
    for path, runs in paths_of(opened, samples).items():
        assert list(listed[record_file(path)]) == [run.sample.name for run in runs]
    assert comparison_file(plan.images[0]) in listed
