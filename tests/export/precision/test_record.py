"""The precision record: an overflow is found and cured, and a build below its threshold is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dod.model.dod import DOD
from export.errors import ParityError
from export.graphs.fp16 import is_inside
from export.graphs.simplify import fold_upsampling
from export.precision import record as record_module
from export.precision.calibration import load_image, restore
from export.precision.ranges import CalibrationReference
from export.precision.record import PrecisionRecord, check, degradations, quantized, sums_in_float32
from tests.dod.small_model import image, normal
from tests.export.planted import BLOCK, LOUD


def test_the_planted_model_computes_the_same(model: DOD, planted: DOD) -> None:
    pixels = image(1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), planted(pixels), rtol=0, atol=1e-6)


def test_an_overflow_is_found_named_and_cured(cured_record: PrecisionRecord) -> None:
    record = cured_record
    assert list(record["fp32_modules"]) == [BLOCK], "the smallest module whose own result is in range"
    assert LOUD in record["fp32_modules"][BLOCK]
    assert all(is_inside(module, {BLOCK}) for module in record["overflows"].values()) and not record["uncovered"]
    first, last = record["trials"][0], record["trials"][-1]
    assert first["psnr_db"] is None and last["psnr_db"] > 45, (
        "not finite without fp32 modules, above the threshold with"
    )
    check(record)


def test_without_the_cure_the_build_fails(overflowing_record: PrecisionRecord) -> None:
    with pytest.raises(ParityError, match=f"not finite.*{LOUD} conv2d.*65504.*--fp32-modules"):
        check(overflowing_record)


def test_no_module_stays_in_fp32_without_need(record: PrecisionRecord) -> None:
    assert record["fp32_modules"] == {} and not record["overflows"] and record["trials"][0]["psnr_db"] > 48
    others = record["other_precisions"]
    assert others["bf16"]["psnr_db"] < record["trials"][0]["psnr_db"]
    check(record)
    for name in ("bf16", "int8"):
        for psnr, words in ((31.0, "31.0 dB.*below.*45 dB"), (60.0, "60.0 dB")):
            changed = {**record, "other_precisions": {**others, name: {**others[name], "psnr_db": psnr}}}
            with pytest.raises(ParityError, match=f"{name}.*{words}.*{name} out of --precision"):
                check(changed, (name,))


def test_photographs_that_name_no_condition_are_degraded(record: PrecisionRecord) -> None:
    named = [Path("haze_1.png"), Path("IMG_1234.jpg"), Path("low-light.png"), Path("IMG_1235.jpg"), Path("x.png")]
    conditions = ("haze", "snow", "rain", "low-light", "noise")
    assert degradations(named, conditions) == {named[1]: "rain", named[3]: "noise"}, "snow is unknown; haze is there"
    assert degradations(named[:1], conditions) == {} == degradations([Path("haze.png")], ("haze",))
    assert any(each.startswith("a.png (noise)") for each in record["images"])


def test_int8_rounding() -> None:
    weight = normal(3, 4, 3, 3)
    rounded = quantized(weight)
    step = weight.flatten(1).abs().amax(dim=1) / 127
    assert ((rounded - weight).flatten(1).abs().amax(dim=1) <= step / 2 + 1e-7).all()
    assert all(len(channel.unique()) <= 255 for channel in rounded)
    assert torch.equal(quantized(weight.transpose(0, 1), axis=1), rounded.transpose(0, 1))


def test_int8_rounds_by_output_channel_in_transposed_convolutions_too(
    model: DOD, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, low = copy.deepcopy(model), list[DOD]()
    fold_upsampling(folded.unet)
    fold_upsampling(folded.decoder)
    image = load_image(paths[0], model)
    reference = CalibrationReference(image, restore(folded, image))
    monkeypatch.setattr(record_module, "restore", lambda model, image: low.append(model) or reference.output)
    record_module.measure_precision(folded, "int8", reference)
    rounded = dict(low[0].named_modules())
    transposed = {name: each for name, each in folded.named_modules() if isinstance(each, torch.nn.ConvTranspose2d)}
    assert len(transposed) >= 3, "the UNet's, its factor A and the decoder's"
    for name, layer in transposed.items():
        weight, found = (each.get_parameter("weight").transpose(0, 1).flatten(1) for each in (layer, rounded[name]))
        step = weight.abs().amax(dim=1) / 127
        assert (found - weight).abs().max() > 0 and ((found - weight).abs().amax(dim=1) <= step * 0.501).all()


def test_the_arithmetic_of_this_machine_is_measured() -> None:
    assert sums_in_float32() in (True, False)
