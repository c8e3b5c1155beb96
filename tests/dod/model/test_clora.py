"""Conditional LoRA and its merges, compared with equations (3) and (4) in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dod.config import UNET_TARGETS
from dod.model import clora
from dod.model.base import load_base
from dod.model.dod import DOD, Encoder, OneStepUNet
from dod.model.networks import new_unet
from tests.dod.small_model import image, normal, snr_db

Array = NDArray[np.float64]

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(12, 20),
    "linear without bias": lambda: nn.Linear(12, 20, bias=False),
    "1x1": lambda: nn.Conv2d(12, 20, 1),
    "3x3 padded": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "3x3 padded, without bias": lambda: nn.Conv2d(12, 20, 3, padding=1, bias=False),
    "3x3 strided": lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1),
    "3x3 strided, unpadded": lambda: nn.Conv2d(12, 20, 3, stride=2),
    "5x3 padded": lambda: nn.Conv2d(12, 20, (5, 3), padding=(2, 1)),
}


def adapted(
    layer: nn.Module, rank: int = 4, alpha: float = 8.0
) -> tuple[nn.Module, clora.CLoRALinear | clora.CLoRAConv2d]:
    """Return a model of two such layers with conditional LoRA, random A and B and scale 2, and the second layer."""
    model = nn.ModuleDict({"first": copy.deepcopy(layer), "second": layer})
    clora.inject(model, ["first", "second"], rank, alpha, conditional=True)
    assert clora.number_layers([model]) == 2
    with torch.no_grad():
        for i, (_, found) in enumerate(clora.adapted_layers(model)):
            for j, factor in enumerate(clora.factors(found)):
                factor.copy_(normal(*factor.shape, seed=10 * i + j))
    return model, list(clora.conditional_layers(model))[1][1]


def example(layer: nn.Module) -> Tensor:
    """Return an input of a layer. A stride of 2 does not divide its sides."""
    return normal(2, 7, 12, seed=5) if isinstance(layer, nn.Linear) else normal(2, 12, 9, 7, seed=5)


def float64(tensor: Tensor | None) -> Array:
    return np.zeros(1) if tensor is None else tensor.detach().double().numpy()


def apply(layer: nn.Module, x: Array, weight: Array, bias: Array) -> Array:
    """Apply the linear map of a layer, convolutions as sums over windows of the zero-padded input."""
    if isinstance(layer, nn.Linear):
        return x @ weight.T + bias
    assert isinstance(layer, nn.Conv2d) and isinstance(layer.padding, tuple)
    vertical, horizontal = layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal)))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, :: layer.stride[0], :: layer.stride[1]]
    return np.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def branch_form(layer: nn.Module, lora: LoraLayer, x: Tensor, gamma: Array, beta: Array) -> Array:
    """Compute equations (3) and (4) in float64: W0 x + s B (gamma * A x + beta). gamma, beta: [B, r]."""
    a, b = (float64(factor) for factor in clora.factors(lora))
    low = apply(layer, float64(x), a, np.zeros(1))
    shape = (gamma.shape[0], 1, -1) if isinstance(layer, nn.Linear) else (gamma.shape[0], -1, 1, 1)
    low = gamma.reshape(shape) * low + beta.reshape(shape)
    high = low @ b.T if isinstance(layer, nn.Linear) else np.einsum("brhw,or->bohw", low, b[:, :, 0, 0])
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    return apply(layer, float64(x), float64(weight), float64(bias)) + 2.0 * high


@pytest.mark.parametrize("kind", LAYERS)
def test_dynamic_layer_is_the_branch_form(kind: str) -> None:
    layer = LAYERS[kind]()
    _, lora = adapted(layer)
    x, modulation = example(layer), normal(2, 2, 2, 4, seed=1)
    with torch.no_grad(), clora.modulated(modulation):
        found = lora(x)
    gamma, beta = float64(modulation[:, 1, 0]), float64(modulation[:, 1, 1])
    expected = branch_form(layer, lora, x, gamma, beta)
    assert snr_db(expected, found) >= 100
    assert snr_db(expected, layer(x).detach()) < 20, "the branch must matter, or this test shows nothing"


@pytest.mark.parametrize("kind", LAYERS)
def test_merged_layer_is_the_branch_form(kind: str) -> None:
    layer = LAYERS[kind]()
    model, lora = adapted(layer)
    x, modulation = example(layer), normal(2, 2, 4, seed=2)
    merged = clora.merged_copy(model, modulation)
    assert not list(clora.adapted_layers(merged))
    gamma, beta = (float64(modulation[1, i]).repeat(2).reshape(4, 2).T for i in (0, 1))
    expected = branch_form(layer, lora, x, gamma, beta)
    with torch.no_grad():
        found = merged.get_submodule("second")(x)
    assert found.shape == expected.shape
    assert snr_db(expected, found) >= 100
    if found.ndim == 4:
        assert snr_db(expected[..., [0, -1]], found[..., [0, -1]]) >= 100, "borders"


def test_merge_of_fp16_factors_returns_float32() -> None:
    weight, a, b = normal(6, 5).half(), normal(3, 5, seed=1).half(), normal(6, 3, seed=2).half()
    gamma, beta = normal(3, seed=3).half(), normal(3, seed=4).half()
    merged, bias = clora.merge(weight, None, a, b, 0.5, gamma, beta)
    w, a64, b64, g, t = (float64(x) for x in (weight, a, b, gamma, beta))
    assert merged.dtype == bias.dtype == torch.float32
    assert snr_db(w + 0.5 * b64 @ np.diag(g) @ a64, merged) >= 100
    assert snr_db(0.5 * b64 @ t, bias) >= 100


@pytest.fixture(scope="module")
def at_prototype(model: DOD) -> tuple[Tensor, Tensor, Tensor]:
    """A latent, the modulation [N, 2, r] of a mean condition, and the output of the dynamic UNet."""
    with torch.no_grad():
        conditions = torch.cat([model.modulation(image(seed=i))[0] for i in range(3)])
        modulation = model.mfm.network(conditions.mean(0, keepdim=True))
        latent = normal(1, 4, 8, 8, seed=3)
        return latent, modulation[0], model.unet(latent, modulation)


def test_merged_weights_load_into_a_plain_diffusers_unet(
    model: DOD, at_prototype: tuple[Tensor, Tensor, Tensor]
) -> None:
    latent, modulation, dynamic = at_prototype
    plain = new_unet(model.preset.base.unet).eval()
    for name, _ in clora.adapted_layers(model.unet.unet):
        layer = plain.get_submodule(name)
        if layer.bias is None:  # a merge gives every adapted layer one
            layer.bias = nn.Parameter(torch.zeros(layer.weight.shape[0]))
    state = clora.merged_copy(model.unet.unet, modulation).state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    plain.load_state_dict(state, strict=True)
    restored = OneStepUNet(plain, model.unet.prompt, model.preset.step)
    with torch.no_grad():
        assert snr_db(dynamic, restored(latent)) >= 80
        neutral = model.unet(latent, torch.zeros_like(modulation)[None])
    assert snr_db(dynamic, neutral) < 40, "the branches must matter, or this test shows nothing"


def test_merging_does_not_change_the_model(model: DOD, at_prototype: tuple[Tensor, Tensor, Tensor]) -> None:
    latent, modulation, dynamic = at_prototype
    first = clora.merged_copy(model.unet.unet, modulation).state_dict()
    clora.merged_copy(model.unet.unet, modulation * 2)
    again = clora.merged_copy(model.unet.unet, modulation).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with torch.no_grad():
        assert snr_db(dynamic, model.unet(latent, modulation[None])) >= 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merging_in_each_call_equals_the_merged_copy(
    model: DOD, at_prototype: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> None:
    latent, modulation, dynamic = at_prototype
    unet = copy.deepcopy(model.unet).to(dtype)
    seen: list[Tensor] = []
    _name, layer = next(clora.conditional_layers(unet))
    layer.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    with torch.no_grad():
        expected = clora.merged_copy(unet, modulation)(latent)
        with clora.merging(unet, modulation):
            found = unet(latent)
        again = unet(latent, modulation[None])
    assert snr_db(expected, found) >= (100 if dtype == torch.float32 else 50)
    assert len(seen) == 3, "hooks run in the copy, in the merged and in the dynamic model"
    assert snr_db(dynamic, again) >= (100 if dtype == torch.float32 else 30), "merging does not change the model"
    with torch.no_grad(), pytest.raises(ValueError, match="modulation"), clora.merging(unet):
        unet(latent)
    with torch.no_grad(), clora.merging(encoder := copy.deepcopy(model.encoder)):
        assert snr_db(clora.merged_copy(model.encoder)(image())[0], encoder(image())[0]) >= 100, "plain LoRA"


def test_plain_lora_of_the_encoder_merges(model: DOD) -> None:
    merged = clora.merged_copy(model.encoder)
    with torch.no_grad():
        expected, skips = model.encoder(image())
        found, merged_skips = merged(image())
    assert snr_db(expected, found) >= 80
    assert all(snr_db(a, b) >= 80 for a, b in zip(skips, merged_skips, strict=True))


def test_base_copy_is_the_model_before_injection(model: DOD) -> None:
    base = Encoder(load_base(model.preset).vae)
    with torch.no_grad():
        wanted, found = base(image())[0], clora.base_copy(model.encoder)(image())[0]
        assert snr_db(wanted, found) >= 100 and snr_db(wanted, model.encoder(image())[0]) < 60


def test_merging_a_conditional_layer_needs_a_condition(model: DOD) -> None:
    with pytest.raises(ValueError, match=r"down_blocks.*modulation"):
        clora.merged_copy(model.unet.unet)
    _, layer = next(clora.conditional_layers(model.unet.unet))
    with pytest.raises(RuntimeError, match="merged_copy"):
        layer.merge()


def test_indices_follow_the_order_of_the_plain_modules(model: DOD) -> None:
    plain = new_unet(model.preset.base.unet)
    expected = [
        f"unet.{name}"
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and any(name == target or name.endswith(f".{target}") for target in UNET_TARGETS)
    ]
    assert model.layers == expected
    for i, name in enumerate(model.layers):
        layer = model.unet.get_submodule(name)
        assert isinstance(layer, clora.CLoRALinear | clora.CLoRAConv2d) and layer.index == i


@pytest.mark.parametrize("index", [0, 57, -1])
def test_a_row_of_the_modulation_affects_the_layer_of_that_index(model: DOD, index: int) -> None:
    modulation = normal(1, len(model.layers), 2, 4, seed=1)
    changed = modulation.clone()
    changed[:, index] += 1

    def outputs(modulation: Tensor) -> dict[str, Tensor]:
        found: dict[str, Any] = {}
        handles = [
            layer.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(f"unet.{name}", output))
            for name, layer in clora.conditional_layers(model.unet.unet)
        ]
        with torch.no_grad():
            model.unet(normal(1, 4, 8, 8), modulation)
        for handle in handles:
            handle.remove()
        return found

    before, after = outputs(modulation), outputs(changed)
    assert before.keys() == set(model.layers)
    first = next(name for name in before if not torch.equal(before[name], after[name]))
    assert first == model.layers[index]


def test_permuting_the_layers_changes_the_output(model: DOD) -> None:
    latent, modulation = normal(1, 4, 8, 8), normal(1, len(model.layers), 2, 4, seed=1)
    with torch.no_grad():
        assert snr_db(model.unet(latent, modulation), model.unet(latent, modulation.flip(1))) < 40


def test_each_image_of_a_batch_has_its_own_modulation(model: DOD) -> None:
    latent, modulation = normal(2, 4, 8, 8), normal(2, len(model.layers), 2, 4, seed=1)
    with torch.no_grad():
        together = model.unet(latent, modulation)
        alone = torch.cat([model.unet(latent[i : i + 1], modulation[i : i + 1]) for i in (0, 1)])
    assert snr_db(alone, together) >= 80
