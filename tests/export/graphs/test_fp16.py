"""fp16 copies: the modules that stay in fp32, and the types that flow between them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from dod.model import clora
from dod.model.dod import DOD
from export.errors import GraphError
from export.graphs.fp16 import SummedInFloat32, default_fp32_modules, fp16_copy
from tests.dod.small_model import image, normal, snr_db


def parameters(model: DOD) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def test_the_default_modules_stay_in_fp32(model: DOD) -> None:
    fp32_modules = default_fp32_modules(model)
    last = len(model.unet.unet.up_blocks) - 1
    assert f"unet.unet.up_blocks.{last}" in fp32_modules and "mfm.network" in fp32_modules
    found = parameters(fp16_copy(model))
    kept = {name for name, dtype in found.items() if dtype == torch.float32}
    assert kept == {name for name in found if name.startswith(tuple(f"{module}." for module in fp32_modules))}
    assert set(found.values()) == {torch.float16, torch.float32}


def test_the_model_itself_is_left_alone(model: DOD) -> None:
    before = copy.deepcopy(model.state_dict())
    fp16_copy(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(parameters(model).values()) == {torch.float32}


def test_without_fp32_modules(model: DOD) -> None:
    assert set(parameters(fp16_copy(model, ())).values()) == {torch.float16}


def test_a_module_that_is_named_stays_in_fp32(model: DOD) -> None:
    fp16 = fp16_copy(model, ("unet.unet.mid_block",))
    found = parameters(fp16)
    assert {name for name, dtype in found.items() if dtype == torch.float32} == {
        name for name in found if name.startswith("unet.unet.mid_block.")
    }
    seen: dict[str, torch.dtype] = {}
    block = fp16.unet.unet.mid_block
    block.resnets[0].register_forward_pre_hook(lambda _, args: seen.update(inside=args[0].dtype))
    block.register_forward_hook(lambda _, args, output: seen.update(handed_on=output.dtype))
    with torch.no_grad():
        fp16.unet(normal(1, 4, 8, 8), torch.zeros(1, len(model.layers), 2, model.preset.lora.rank))
    assert seen == {"inside": torch.float32, "handed_on": torch.float16}


def test_an_fp32_module_keeps_values_beyond_fp16(model: DOD) -> None:
    large, name = copy.deepcopy(model), "unet.unet.mid_block.resnets.0.conv1.base_layer.weight"
    large.get_parameter(name).data.fill_(1e5)
    fp16 = fp16_copy(large, ("unet.unet.mid_block",))
    assert (fp16.get_parameter(name) == 1e5).all()
    assert fp16.unet.unet.conv_in.weight.dtype == torch.float16


@pytest.mark.parametrize("name", ["unet.nothing", "unet.unet.up_blocks.9", "mfm.netwrok"])
def test_an_unknown_module_is_refused(model: DOD, name: str) -> None:
    with pytest.raises(GraphError, match=f"'{name}'.*mfm.network"):
        fp16_copy(model, ("mfm.network", name))


@pytest.mark.parametrize("name", ["decoder.decoder", "unet.unet.up_blocks"])
def test_a_container_is_refused(model: DOD, name: str) -> None:
    with pytest.raises(GraphError, match=f"{name} .*never called.*{name}\\."):
        fp16_copy(model, (name,))


def test_the_interface_is_float32_and_the_error_small(model: DOD) -> None:
    fp16, pixels = fp16_copy(model), image(1, 16, 24)
    crops = image(4, 32, 32)[None]
    with torch.no_grad():
        condition, modulation = fp16.mfm(crops)
        latent, skips = fp16.encoder(pixels)
        restored = fp16.unet(latent, modulation)
        found = fp16.decoder(restored, skips)
        _, expected = model.mfm(crops)
        expected_latent, expected_skips = model.encoder(pixels)
        result = model.decoder(model.unet(expected_latent, expected), expected_skips)
    assert {value.dtype for value in (condition, modulation, latent, restored, found)} == {torch.float32}
    assert {skip.dtype for skip in skips} == {torch.float16}
    assert 30 < snr_db(result, found) < 100, "fp16, but no garbage"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["convolution", "strided", "transposed", "linear"])
def test_sums_are_in_float32_and_rounded_once(dtype: torch.dtype, name: str) -> None:
    layers: dict[str, Callable[[], torch.nn.Module]] = {
        "convolution": lambda: torch.nn.Conv2d(24, 8, 3, padding=1),
        "strided": lambda: torch.nn.Conv2d(24, 8, 3, 2, padding=1),
        "transposed": lambda: torch.nn.ConvTranspose2d(24, 8, 4, 2, padding=1),
        "linear": lambda: torch.nn.Linear(200, 8),
    }
    layer = layers[name]().to(dtype)
    image = normal(1, 24, 12, 200 if name == "linear" else 12).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(layer).double()(image.double())
        with SummedInFloat32():
            found = layer(image)
        loop = layer(image)
    assert found.dtype == dtype
    spacing = torch.finfo(dtype).eps * exact.abs()
    assert ((found.double() - exact).abs() <= 0.5001 * spacing + 1e-6).all()
    if name != "transposed":  # PyTorch's own loop rounds every partial sum of these
        assert ((found.double() - loop.double()).abs() <= 1.01 * spacing + 1e-6).all()


def test_convolutions_that_overflow_stay_infinite() -> None:
    layer = torch.nn.Conv2d(1, 1, 1, bias=False).half()
    torch.nn.init.constant_(layer.weight, 300.0)
    with torch.no_grad(), SummedInFloat32():
        assert layer(torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)).isinf().all()
        assert layer(torch.full((1, 1, 2, 2), 200.0, dtype=torch.float16)).eq(300 * 200).all()


def test_float32_tensors_are_computed_as_before(model: DOD) -> None:
    pixels = image(1, 16, 24)
    with torch.no_grad():
        expected = model.encoder(pixels)[0]
        with SummedInFloat32():
            torch.testing.assert_close(model.encoder(pixels)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    (
        *("unet.unet.conv_norm_out", "unet.unet.conv_out", "unet.unet.time_embedding", "unet"),
        *("encoder.quant_conv", "encoder", "mfm.h_space.time_embedding"),
    ),
)
def test_any_module_can_be_the_only_one_in_fp32(model: DOD, name: str) -> None:
    fp16, pixels = fp16_copy(model, (name,)), image(1, 16, 24)
    with torch.no_grad():
        _, modulation = fp16.mfm(image(4, 32, 32)[None])
        latent, skips = fp16.encoder(pixels)
        restored = fp16.unet(latent, modulation)
        merged = clora.merged_copy(fp16.unet, modulation[0])(latent)
        found = fp16.decoder(restored, skips)
    assert {value.dtype for value in (modulation, latent, restored, found)} == {torch.float32}
    assert {skip.dtype for skip in skips} == {torch.float16}
    assert snr_db(restored, merged) > 25, "the casts survive the merge"
