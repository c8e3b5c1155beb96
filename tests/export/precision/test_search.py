"""The precision step: what it sees, what it cures, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dod.model import clora
from dod.model.dod import DOD
from export.errors import ParityError
from export.graphs.fp16 import fp16_copy, within
from export.graphs.simplify import fold_upsampling
from export.precision import record as calibration
from export.precision import search
from export.precision.probe import Probe
from export.precision.ranges import Range, Reference, load_image, measure_ranges, restore
from export.precision.record import calibrate, check, degradations, quantised, sums_in_float32
from export.precision.report import draw, section
from export.precision.search import candidates
from tests.dod.small_model import image, normal, snr_db
from tests.export.planted import BLOCK, LOUD, plant_overflow

ANY = (
    *("unet.unet.conv_norm_out", "unet.unet.conv_out", "unet.unet.time_embedding", "unet"),
    *("encoder.quant_conv", "encoder", "mfm.h_space.time_embedding"),
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small images, one of a size that has to be padded."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (32, 40, 3)), ("b.png", (30, 33, 3))):
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def planted(model: DOD) -> DOD:
    return plant_overflow(model)


def quiet(text: str) -> None:
    pass


def test_the_planted_model_computes_the_same(model: DOD, planted: DOD) -> None:
    pixels = image(1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels), planted(pixels))


def test_an_overflow_is_found_named_and_cured(planted: DOD, paths: list[Path]) -> None:
    record = calibrate(planted, paths, None, quiet)
    assert list(record["fp32_modules"]) == [BLOCK], "the smallest module whose own result is in range"
    assert LOUD in record["fp32_modules"][BLOCK]
    assert all(within(module, {BLOCK}) for module in record["overflows"].values()) and not record["uncured"]
    first, last = record["trials"][0], record["trials"][-1]
    assert first["psnr_db"] is None and last["psnr_db"] > 45, "not finite without, in budget with"
    check(record)


def test_without_the_cure_the_build_fails(planted: DOD, paths: list[Path]) -> None:
    record = calibrate(planted, paths, (), quiet)
    with pytest.raises(ParityError, match=f"PSNR not finite; {LOUD} conv2d reaches .*float16 holds 65504"):
        check(record)


def test_no_island_where_none_is_needed(model: DOD, paths: list[Path], tmp_path: Path) -> None:
    record = json.loads(json.dumps(calibrate(model, paths, None, quiet)))
    assert record["fp32_modules"] == {} and not record["overflows"] and record["trials"][0]["psnr_db"] > 48
    assert record["gate"]["bf16"]["psnr_db"] < record["trials"][0]["psnr_db"]
    check(record)
    text = "\n\n".join(section(record, "plot.png"))
    assert "None: half meets the budget without one." in text and "ONNX Runtime on CPU computes" in text
    draw(record, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 1000
    for name in ("bf16", "int8"):
        refused = {**record, "gate": {**record["gate"], name: {**record["gate"][name], "psnr_db": 31.0}}}
        with pytest.raises(ParityError, match=f"{name}: PSNR 31.0 dB .* below .* 45 dB.* no bundle .*leave {name} out"):
            check(refused, (name,))
        passed = {**record, "gate": {**record["gate"], name: {**record["gate"][name], "psnr_db": 60.0}}}
        with pytest.raises(ParityError, match=f"{name}: PSNR 60.0 dB .* no bundle .*leave {name} out"):
            check(passed, (name,))


def test_photographs_that_name_no_condition_are_degraded(model: DOD, paths: list[Path]) -> None:
    named = [Path("haze_1.png"), Path("IMG_1234.jpg"), Path("low-light.png"), Path("IMG_1235.jpg"), Path("x.png")]
    conditions = ("haze", "snow", "rain", "low-light", "noise")
    assert degradations(named, conditions) == {named[1]: "rain", named[3]: "noise"}, "snow is unknown; haze is there"
    assert degradations(named[:1], conditions) == {} == degradations([Path("haze.png")], ("haze",))
    plain, noisy, again = (load_image(paths[0], model, name) for name in ("", "noise", "noise"))
    assert noisy.name == "a.png (noise)" and plain.image.shape == noisy.image.shape
    assert torch.equal(noisy.image, again.image) and not torch.equal(noisy.image, plain.image)
    assert not torch.equal(noisy.crops, plain.crops) and noisy.image.abs().max() <= 1
    record = calibrate(model, paths, (), quiet, {paths[0]: "noise"})
    assert any(each.startswith("a.png (noise)") for each in record["images"])
    assert "a.png (noise)" in "\n".join(section(record, "plot.png"))


def test_a_budget_out_of_reach_of_half_takes_islands(
    model: DOD, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = calibrate(model, paths, (), quiet)["trials"][0]["psnr_db"]
    monkeypatch.setattr(search, "BUDGET", none + 1 - search.MARGIN)
    record = calibrate(model, paths, None, quiet)
    assert record["fp32_modules"] and record["trials"][-1]["psnr_db"] > none
    assert len(record["fp32_modules"]) < len(candidates(model)) / 2


def test_the_range_of_a_result_by_hand() -> None:
    span = Range(("a",))
    span.add(torch.tensor([0.0, -8.0, 1e-5, 1e-8]))
    assert span.largest == 8 and span.headroom == pytest.approx(13, abs=1e-3)
    assert span.share(span.subnormal) == pytest.approx(2 / 3) and span.share(span.flushed) == pytest.approx(1 / 3)


def test_the_probe_sees_between_modules(model: DOD, paths: list[Path]) -> None:
    ranges: dict[str, Range] = {}
    image = load_image(paths[1], model)
    assert image.image.shape == (1, 3, 32, 36)
    (reference,) = measure_ranges(model, [image], ranges)
    assert np.array_equal(reference.outcome.image, restore(model, image).image), "looking changes nothing"
    for name in ("decoder.detail.0 mul", "unet.unet.mid_block.attentions.0.transformer_blocks.0.attn1 scores"):
        assert name in ranges, "computed in no module of its own"
    assert not model._forward_hooks and not model.unet.unet.conv_in._forward_pre_hooks


def test_attention_scores(model: DOD) -> None:
    query, key = normal(1, 2, 300, 4), normal(1, 2, 7, 4, seed=1)
    seen: list[torch.Tensor] = []
    with Probe(model, lambda operation, result: seen.append(result), scores=True) as probe:
        probe._stack.append("unet")
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    scores = torch.cat(seen[:-1], dim=2)
    assert torch.allclose(scores, query @ key.transpose(2, 3) / 2, atol=1e-6) and len(seen) == 3


@pytest.mark.parametrize("name", ANY)
def test_any_module_can_be_the_only_island(model: DOD, name: str) -> None:
    fp16, pixels = fp16_copy(model, (name,)), image(1, 16, 24)
    with torch.no_grad():
        _, modulation = fp16.mfm(image(4, 32, 32)[None])
        latent, skips = fp16.encoder(pixels)
        restored = fp16.unet(latent, modulation)
        merged = clora.merged_copy(fp16.unet, modulation[0])(latent)
        found = fp16.decoder(restored, skips)
    assert {value.dtype for value in (modulation, latent, restored, found)} == {torch.float32}
    assert {skip.dtype for skip in skips} == {torch.float16}
    assert snr_db(restored, merged) > 25, "an island outlives the merge"


def test_int8_rounding() -> None:
    weight = normal(3, 4, 3, 3)
    rounded = quantised(weight)
    step = weight.flatten(1).abs().amax(dim=1) / 127
    assert ((rounded - weight).flatten(1).abs().amax(dim=1) <= step / 2 + 1e-7).all()
    assert all(len(channel.unique()) <= 255 for channel in rounded)
    assert torch.equal(quantised(weight.transpose(0, 1), axis=1), rounded.transpose(0, 1))


def test_int8_rounds_by_output_channel_in_transposed_convolutions_too(
    model: DOD, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, low = copy.deepcopy(model), list[DOD]()
    fold_upsampling(folded.unet)
    fold_upsampling(folded.decoder)
    image = load_image(paths[0], model)
    reference = Reference(image, restore(folded, image))
    monkeypatch.setattr(calibration, "restore", lambda model, image: low.append(model) or reference.outcome)
    calibration.measure_gate(folded, "int8", reference)
    rounded = dict(low[0].named_modules())
    transposed = {name: each for name, each in folded.named_modules() if isinstance(each, torch.nn.ConvTranspose2d)}
    assert len(transposed) >= 3, "the UNet's, its A and the decoder's"
    for name, layer in transposed.items():
        weight, found = (each.get_parameter("weight").transpose(0, 1).flatten(1) for each in (layer, rounded[name]))
        step = weight.abs().amax(dim=1) / 127
        assert (found - weight).abs().max() > 0 and ((found - weight).abs().amax(dim=1) <= step * 0.501).all()


def test_how_this_machine_sums() -> None:
    assert sums_in_float32() in (True, False)
