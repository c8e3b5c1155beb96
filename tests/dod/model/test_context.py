"""Modulation of a forward pass: nested, in threads, with gradient checkpointing, and compiled."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from dod.model import clora
from dod.model.dod import DOD
from tests.dod.small_model import image, normal, randomise, smaller, snr_db, tiny


def test_conditional_layer_without_modulation_is_an_error(model: DOD) -> None:
    with pytest.raises(RuntimeError, match=r"modulated"):
        model.unet.unet(normal(1, 4, 8, 8), 999, model.unet.prompt)
    with pytest.raises(RuntimeError, match="modulated"):
        model.unet(normal(1, 4, 8, 8))


def test_modulated_nests_and_ends() -> None:
    outer, inner = normal(1, 2, 2, 4), normal(1, 2, 2, 4, seed=1)
    model = nn.ModuleDict({"only": nn.Linear(12, 20)})
    clora.inject(model, ["only"], rank=4, alpha=8, conditional=True)
    clora.number_layers([model])
    _, lora = next(clora.conditional_layers(model))
    nn.init.normal_(clora.factors(lora)[1])
    x = normal(1, 7, 12)
    with torch.no_grad(), clora.modulated(outer):
        first = lora(x)
        with clora.modulated(inner):
            assert clora.current_modulation() is inner
            assert snr_db(first, lora(x)) < 40
            with pytest.raises(ZeroDivisionError), clora.modulated(None):
                assert clora.current_modulation() is None
                _ = 1 / 0
            assert clora.current_modulation() is inner
        torch.testing.assert_close(lora(x), first)
    assert clora.current_modulation() is None


def test_two_threads_in_the_middle_of_a_pass_keep_their_modulations(model: DOD) -> None:
    latents = [normal(1, 4, 8, 8, seed=i) for i in (0, 1)]
    modulations = [normal(1, len(model.layers), 2, 4, seed=i) for i in (2, 3)]
    with torch.no_grad():
        serial = [model.unet(z, m) for z, m in zip(latents, modulations, strict=True)]
    meet = threading.Barrier(2)
    found: list[Tensor | None] = [None, None]

    def run(i: int) -> None:
        with torch.no_grad():
            found[i] = model.unet(latents[i], modulations[i])

    def wait(*_: object) -> None:
        meet.wait(600)

    hook = model.unet.unet.mid_block.register_forward_pre_hook(wait)
    try:
        threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
    finally:
        hook.remove()
    for expected, value in zip(serial, found, strict=True):
        assert value is not None and snr_db(expected, value) >= 80
    assert snr_db(serial[0], serial[1]) < 40, "the modulations must matter, or this test shows nothing"


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = randomise(DOD.from_preset(tiny()))
    convolution = model.unet.unet.get_submodule("down_blocks.0.resnets.0.conv1")
    calls: list[str] = []
    convolution.register_forward_hook(lambda *_: calls.append("called"))
    parameters = [p for name, p in model.adaptation_parameters().items() if name.startswith(("unet", "modulation"))]

    def gradients() -> list[Tensor]:
        model.zero_grad()
        _, modulation = model.modulation(image())
        model.unet(normal(1, 4, 16, 16), modulation).square().mean().backward()
        return [p.grad.clone() for p in parameters if p.grad is not None]

    plain = gradients()
    assert len(calls) == 1 and len(plain) == len(parameters) and all(g.abs().max() > 0 for g in plain)
    model.unet.enable_gradient_checkpointing()
    checkpointed = gradients()
    assert len(calls) == 3, "the block is recomputed in the backward pass"
    torch.testing.assert_close(checkpointed, plain)


def test_torch_compile_supports_the_unet_with_fullgraph() -> None:
    model = randomise(DOD.from_preset(smaller(lora__unet_targets=["to_q", "conv1"])))
    compiled = torch.compile(model.unet, backend="eager", fullgraph=True)
    latent = normal(1, 4, 16, 16)
    try:
        with torch.no_grad():
            for seed in (1, 2):
                modulation = normal(1, len(model.layers), 2, 4, seed=seed)
                assert snr_db(model.unet(latent, modulation), compiled(latent, modulation)) >= 100
    finally:
        torch._dynamo.reset()
    assert clora.current_modulation() is None
