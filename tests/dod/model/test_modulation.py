"""Crops, condition and modulation, compared with equation (5) in float64."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dod.errors import CheckpointError
from dod.model.dod import DOD
from dod.model.modulation import MFM, DiffusersHSpace, ModulationNetwork, crop_indices, native_crops
from dod.model.networks import new_ddpm
from tests.dod.small_model import image, normal, snr_db, tiny


@given(length=st.integers(1, 300), per_axis=st.integers(1, 4), size=st.integers(1, 64))
def test_crops_along_an_axis(length: int, per_axis: int, size: int) -> None:
    crops = crop_indices(length, per_axis, size)
    assert len(crops) == per_axis and all(len(crop) == size for crop in crops)
    assert all(0 <= i < length for crop in crops for i in crop)
    if length >= size:
        assert all(crop == list(range(crop[0], crop[0] + size)) for crop in crops), "native pixels, in order"
        if per_axis > 1:
            assert crops[0][0] == 0 and crops[-1][-1] == length - 1
            exact = [Fraction(i * (length - size), per_axis - 1) for i in range(per_axis)]
            assert [crop[0] for crop in crops] == [math.floor(start + Fraction(1, 2)) for start in exact]
        else:
            assert abs(crops[0][0] - (length - 1 - crops[0][-1])) <= 1, "centred"
    else:
        extended = np.pad(np.arange(length), (0, size - length), mode="reflect" if length > 1 else "edge")
        assert all(crop == extended.tolist() for crop in crops)


@given(height=st.integers(1, 40), width=st.integers(1, 40), per_axis=st.integers(1, 3))
def test_native_crops_are_the_images_own_pixels(height: int, width: int, per_axis: int) -> None:
    image = torch.arange(2 * 3 * height * width, dtype=torch.float32).reshape(2, 3, height, width)
    crops = native_crops(image, per_axis**2, 16)
    assert crops.shape == (2, per_axis**2, 3, 16, 16)
    rows, columns = crop_indices(height, per_axis, 16), crop_indices(width, per_axis, 16)
    for i in range(per_axis):
        for j in range(per_axis):
            expected = image.numpy()[:, :, rows[i]][:, :, :, columns[j]]
            np.testing.assert_array_equal(crops[:, i * per_axis + j], expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (5, 31)])
def test_the_model_accepts_images_smaller_than_a_crop(untrained: DOD, height: int, width: int) -> None:
    condition, modulation = untrained.modulation(image(2, height, width))
    assert condition.shape == (2, 32) and modulation.shape == (2, len(untrained.layers), 2, 4)
    assert condition.isfinite().all()


class Means(nn.Module):
    """An h-space that is the image itself."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_condition_is_the_mean_over_positions_and_crops() -> None:
    crops = normal(2, 4, 3, 8, 8)
    condition = MFM(Means(), ModulationNetwork(3, 5, 4, 8, 8)).condition(crops)
    assert condition.dtype == torch.float32
    np.testing.assert_allclose(condition, crops.double().numpy().mean(axis=(1, 3, 4)), atol=1e-6)


def test_condition_does_not_depend_on_the_batch(model: DOD) -> None:
    crops = torch.stack([native_crops(image(seed=i, height=80), 4, 32)[0] for i in range(3)])
    together = model.mfm.condition(crops)
    alone = torch.cat([model.mfm.condition(crops[i : i + 1]) for i in range(3)])
    single = torch.stack([model.mfm.condition(crops[:, k : k + 1]) for k in range(4)]).mean(0)
    assert snr_db(alone, together) >= 90 and snr_db(single, together) >= 90
    assert snr_db(together, model.mfm.condition(crops.flip(1))) >= 90, "the order of the crops does not matter"
    assert snr_db(alone[0], alone[1]) < 60, "the images must differ, or this test shows nothing"


def test_modulation_is_equation_5_layer_by_layer() -> None:
    network = ModulationNetwork(channels=6, layers=5, rank=3, condition_width=8, prompt_width=4)
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    p = {name: parameter.detach().double() for name, parameter in network.named_parameters()}

    def hidden(x: Tensor, name: str) -> Tensor:
        x = F.linear(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"])
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * p[f"{name}.1.weight"] + p[f"{name}.1.bias"]
        return x.clamp(min=0)

    condition = normal(2, 6, seed=9)
    found = network(condition)
    assert found.shape == (2, 5, 2, 3) and found.dtype == torch.float32
    for b in range(2):
        for i in range(5):
            c, prompt = hidden(condition[b].double(), "condition_in"), hidden(p["prompts"][i], "prompt_in")
            out = p["out.weight"] @ torch.cat([c, prompt]) + p["out.bias"]
            assert snr_db(1 + out[:3], found[b, i, 0]) >= 90, "gamma"
            assert snr_db(out[3:], found[b, i, 1]) >= 90, "beta"


def test_modulation_starts_at_gamma_1_beta_0(untrained: DOD) -> None:
    modulation = untrained.mfm.network(normal(3, 32) * 100)
    assert torch.equal(modulation[:, :, 0], torch.ones(3, len(untrained.layers), 4))
    assert torch.equal(modulation[:, :, 1], torch.zeros(3, len(untrained.layers), 4))


def ddpm(**changes: Any) -> UNet2DModel:
    config = {key: value for key, value in new_ddpm(tiny().ddpm).config.items() if not key.startswith("_")}
    return UNet2DModel(**{**config, **changes}).eval()


@pytest.mark.parametrize(
    "changes", [{}, {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0}], ids=["tiny", "defaults"]
)
def test_h_space_is_the_middle_block_of_the_whole_ddpm(changes: dict[str, Any]) -> None:
    unet = ddpm(**changes)
    assert unet.mid_block is not None
    seen: list[Any] = []
    hook = unet.mid_block.register_forward_hook(lambda _, __, output: seen.append(output))
    x = image(2, 32, 32)
    with torch.no_grad():
        unet(x, 0)
        hook.remove()
        found = DiffusersHSpace(unet)(x)
    assert found.shape == (2, 32, 8, 8) and snr_db(seen[0], found) >= 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_class_embeds": 3}, "class labels"),
        ({"center_input_sample": True}, "a centered input"),
        ({"time_embedding_type": "fourier"}, "a time embedding that is not positional"),
        (
            {"down_block_types": ["SkipDownBlock2D"] * 3, "up_block_types": ["SkipUpBlock2D"] * 3},
            "skip-convolution blocks",
        ),
    ],
)
def test_a_ddpm_of_another_structure_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DiffusersHSpace(ddpm(**changes))
