"""Detail modules and decoder, compared with equation (6) in float64 and with diffusers."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import FloatTensor, Tensor

from dod.config import DetailConfig, load_preset
from dod.model.base import load_base
from dod.model.detail import RRDB, Decoder, DetailEnhancement
from dod.model.dod import DOD, Encoder
from dod.model.networks import new_vae
from tests.dod.small_model import image, normal, snr_db, tiny


def reference_rrdb(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Compute an RRDB in float64 (Wang et al. 2018, Fig. 4): three dense blocks of five convolutions, scale 0.2."""
    result = x
    for block in range(3):
        features = [result]
        for i in range(5):
            name = f"blocks.{block}.convs.{i}"
            out = F.conv2d(torch.cat(features, 1), w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
            features.append(torch.where(out > 0, out, 0.2 * out) if i < 4 else out)
        result = result + 0.2 * features[-1]
    return x + 0.2 * result


def doubles(module: torch.nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.double() for k, v in module.state_dict().items() if k.startswith(prefix)}


def example_module() -> tuple[DetailEnhancement, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        DetailEnhancement(6, 4, DetailConfig(blocks=2, growth=3)),
        normal(2, 6, 8, 5, seed=1),
        normal(2, 4, 8, 5, seed=2),
    )


def test_rrdb_is_esrgans() -> None:
    torch.manual_seed(0)
    block, x = RRDB(4, 3), normal(2, 4, 9, 7)
    assert [block.get_parameter(f"blocks.0.convs.{i}.bias").numel() for i in range(5)] == [3, 3, 3, 3, 4]
    with torch.no_grad():
        assert snr_db(reference_rrdb(doubles(block), x.double()), block(x)) >= 100


def test_detail_enhancement_is_equation_6() -> None:
    module, encoded, decoded = example_module()
    with torch.no_grad():
        module.weight.fill_(0.7)
        module.align.weight.copy_(normal(4, 6, 1, 1))
        w = doubles(module)
        aligned = torch.einsum("oc,bchw->bohw", w["align.weight"][:, :, 0, 0], encoded.double())
        both = torch.cat([aligned + w["align.bias"][:, None, None], decoded.double()], 1)
        x = torch.einsum("oc,bchw->bohw", w["fuse.weight"][:, :, 0, 0], both) + w["fuse.bias"][:, None, None]
        for i in range(2):
            x = reference_rrdb(doubles(module, f"body.{i}."), x)
        assert snr_db(decoded.double() + 0.7 * x, module(encoded, decoded)) >= 100


def test_a_narrower_module_is_smaller() -> None:
    encoded, decoded = normal(2, 6, 8, 5, seed=1), normal(2, 16, 8, 5, seed=2)
    whole, narrow = (DetailEnhancement(6, 16, DetailConfig(blocks=1, growth=4, narrow=n)) for n in (1, 2))
    assert torch.equal(narrow(encoded, decoded), decoded)
    with torch.no_grad():
        narrow.weight.fill_(0.5)
    assert narrow(encoded, decoded).shape == decoded.shape and not torch.equal(narrow(encoded, decoded), decoded)
    sizes = [sum(p.numel() for p in module.body.parameters()) for module in (whole, narrow)]
    assert sizes[1] < 0.5 * sizes[0]
    assert narrow.body[0].blocks[0].convs[-1].out_channels == 8


def test_it_starts_as_the_identity() -> None:
    module, encoded, decoded = example_module()
    assert torch.equal(module(encoded, decoded), decoded)
    assert not any(parameter.any() for parameter in module.align.parameters())


def test_the_first_step_moves_w_and_the_second_the_rest() -> None:
    module, encoded, decoded = example_module()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)

    def step() -> dict[str, bool]:
        """Take a gradient step and return, for each parameter, True if it changed."""
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        optimizer.zero_grad()
        (module(encoded, decoded) - decoded - 1).square().mean().backward()
        optimizer.step()
        return {name: not torch.equal(before[name], p) for name, p in module.named_parameters()}

    assert [name for name, moved in step().items() if moved] == ["weight"]
    assert all(step().values())


def test_skips_and_widths_at_the_scale_of_the_paper() -> None:
    config = load_preset("sd21")
    with torch.device("meta"):
        vae = new_vae(config.base.vae)
        decoder = Decoder(vae, config.detail)
        seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for module in decoder.detail:
            module.register_forward_pre_hook(lambda _, args: seen.append((tuple(args[0].shape), tuple(args[1].shape))))
        latent, skips = Encoder(vae)(torch.empty(1, 3, 128, 192))
        restored = decoder(latent, skips)
    assert latent.shape == (1, 4, 16, 24) and restored.shape == (1, 3, 128, 192)
    assert [tuple(skip.shape) for skip in skips] == [
        (1, 128, 128, 192), (1, 128, 64, 96), (1, 256, 32, 48), (1, 512, 16, 24),
    ]  # fmt: skip
    assert seen == [
        ((1, 512, 16, 24), (1, 512, 16, 24)),
        ((1, 256, 32, 48), (1, 512, 32, 48)),
        ((1, 128, 64, 96), (1, 512, 64, 96)),
        ((1, 128, 128, 192), (1, 256, 128, 192)),
    ]


def test_untrained_decoder_is_the_vaes(untrained: DOD) -> None:
    vae, latent = load_base(untrained.preset).vae, normal(1, 4, 8, 8)
    _, skips = untrained.encoder(image())
    with torch.no_grad():
        expected = vae.decode(cast(FloatTensor, latent / 0.18215), return_dict=False)[0]
        assert snr_db(expected, untrained.decoder(latent, skips)) >= 100
        assert snr_db(untrained.decoder(latent), untrained.decoder(latent, skips)) >= 100


def test_without_skips_no_detail_module_runs(model: DOD, untrained: DOD) -> None:
    latent = normal(1, 4, 8, 8)
    with torch.no_grad():
        _, skips = model.encoder(image())
        plain = untrained.decoder(latent)
        assert snr_db(plain, model.decoder(latent)) >= 100
        assert snr_db(plain, model.decoder(latent, skips)) < 60


@pytest.mark.parametrize("enabled", [True, False])
def test_enabled(enabled: bool) -> None:
    decoder = Decoder(new_vae(tiny().base.vae), DetailConfig(enabled, blocks=1, growth=4))
    assert len(decoder.detail) == (4 if enabled else 0)
