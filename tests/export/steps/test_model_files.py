"""The artefacts of weights, graphs and conditions."""

from __future__ import annotations

from export.steps.model_files import MetaCopies, conditions_of, graphs, weights
from export.steps.precision import FP32_MODULES
from tests.export.conftest import MakePlan


def test_only_fp16_files_need_the_fp32_modules(make: MakePlan) -> None:
    plan = make("rain_1.png")
    files = {each.name: each for each in (*weights(plan, MetaCopies(plan)), *graphs(plan, MetaCopies(plan)))}
    assert len(files) == 2 * (4 + 5), "both UNet graphs of a precision share their weights"
    assert all(each.needs == ((FP32_MODULES,) if "fp16" in name else ()) for name, each in files.items())
    made = list(files)
    assert made.index("onnx/fp16/decoder.safetensors") < made.index("onnx/fp32/unet_dynamic.onnx")
    assert len({id(each.make) for name, each in files.items() if name.endswith(".onnx")}) == 1, "traced by one call"


def test_a_prototype_decides_its_own_condition_alone(make: MakePlan) -> None:
    plan = make("rain_1.png")
    rain, haze = conditions_of(plan)
    assert (rain.name, haze.name) == ("conditions/rain.safetensors", "conditions/haze.safetensors")
    same = {key for key in rain.inputs if rain.inputs[key] == haze.inputs[key]}
    assert rain.inputs.keys() - same == {"prototype"}
