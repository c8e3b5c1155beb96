"""What goes past the model: the histogram that tells it, what becomes of it, and the command that fits the choice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dod.bypass import FLOOR, HOP, SHADES, Bypass
from dod.checkpoint import load_model, read_metadata
from dod.config import BypassConfig, DetailConfig, SharpeningConfig
from dod.data.dataset import PhotographCrops
from dod.errors import CheckpointError, ConfigError, run_command
from dod.model import DOD
from dod.training import bypass, sharpening
from tests.dod.small_fits import SHARPENING, change, photographed
from tests.dod.small_model import image, normal, snr_db, tiny


def example(share: float) -> Bypass:
    """One that lets a share of whatever picture past, and sees the features 1 to 3 as the colours."""
    part = Bypass(4, 5, BypassConfig(8))
    with torch.no_grad():
        part.colours.weight.copy_(torch.eye(3, 4)[:, :, None, None])
        nn.init.zeros_(part.colours.bias)
        nn.init.constant_(part.last.bias, math.log(share / (1 - share)))
    return part


def own(pictures: Tensor) -> Tensor:
    """Features in which `example` sees pictures."""
    return torch.cat([pictures, pictures[:, :1] ** 2], 1)


@torch.no_grad()
def test_it_begins_as_nothing() -> None:
    torch.manual_seed(0)
    part, restored = Bypass(4, 5, BypassConfig(8)), image(2, 48, 80)
    assert torch.allclose(part(restored, normal(2, 4, 48, 80), normal(2, 5)), restored, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.25, 0.999])
def test_it_mixes_the_decoders_picture_and_the_own_one(share: float) -> None:
    restored, picture = image(2, 40, 72, seed=3), image(2, 40, 72, seed=4)
    expected = (1 - share) * restored + share * picture
    assert snr_db(expected, example(share)(restored, own(picture), normal(2, 5))) > 100


@torch.no_grad()
def test_the_histogram_counts_the_darkest_and_the_brightest_channels() -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 100))).float() / 127.5 - 1
    found = example(0.5).histogram(pictures)
    seen = (pictures.numpy()[:, :, ::HOP, ::HOP] + 1) / 2
    shares = [(seen.min(1) < shade).mean((1, 2)) for shade in SHADES]
    shares += [(seen.max(1) > shade).mean((1, 2)) for shade in SHADES]
    assert np.abs(np.exp(found.numpy()) - FLOOR - np.stack(shares, 1)).max() < 0.02
    black = example(0.5).histogram(torch.full((1, 3, 64, 64), -1.02))[0].exp() - FLOOR
    assert (black[: len(SHADES)] > 0.99).all() and (black[len(SHADES) :] < 0.01).all()


@torch.no_grad()
def test_levels_and_histogram_decide() -> None:
    part, restored = example(0.5), image(2, 32, 32)
    nn.init.normal_(part.last.weight)
    torch.manual_seed(1)
    levels, brighter = 10 * normal(2, 5), own(restored + 0.4)
    found = (part(restored, brighter, levels) - restored).mean((1, 2, 3))
    darker = (part(restored, own(restored - 0.4), levels) - restored).mean((1, 2, 3))
    assert not torch.isclose(found[0], found[1], atol=1e-3) and not torch.allclose(found, -darker, atol=1e-3)
    assert torch.allclose(found[1:], (part(restored[1:], brighter[1:], levels[1:]) - restored[1:]).mean(), atol=1e-6)
    assert part.half()(restored, brighter.half(), levels).dtype == torch.float32


@torch.no_grad()
def test_the_decoder_has_it_where_it_sharpens_and_has_skips() -> None:
    parts = {"detail__sharpening": {"filters": 3, "taps": 5, "window": 9, "width": 8}, "detail__bypass": {"width": 8}}
    model = DOD.from_preset(tiny(**parts))
    named, part = model.fitted_parameters(), model.decoder.bypass
    assert part is not None and {"sharpening.luma.weight", "bypass.colours.weight"} < set(named)
    assert set(named) <= set(model.trained_tensors()) and "bypass" not in "".join(model.decoder.base_parameters())
    picture, latent = image(), normal(1, 4, 8, 8)
    _, skips = model.encoder(picture)
    before = model.decoder(latent, skips)
    nn.init.constant_(part.last.bias, 1.0)
    nn.init.normal_(model.decoder.sharpening.last.weight)  # type: ignore[union-attr]
    added, levels = model.decoder.sharpening(skips[0])  # type: ignore[misc]
    after = model.decoder(latent, skips)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.allclose(after - added, part(before, skips[0], levels), atol=1e-4)
    assert torch.equal(model.decoder(latent), DOD.from_preset(tiny()).decoder(latent))
    assert DOD.from_preset(tiny(detail__enabled=False, **parts)).decoder.bypass is None
    with pytest.raises(ConfigError, match="set sharpening too"):
        DetailConfig(bypass=BypassConfig())
    with pytest.raises(ConfigError, match="width: 1 is not at least 2"):
        BypassConfig(1)
    assert DetailConfig(sharpening=SharpeningConfig()).bypass is None


def test_the_command_fits_what_goes_past(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = photographed(folder)

    def run(*more: str) -> str:
        assert run_command(bypass.main, [*argv, *more]) == 2
        return capsys.readouterr().err

    assert "has no detail.bypass to be fitted: set it" in run()
    change(folder, {"sharpening": SHARPENING, "bypass": {"width": 32}}, conditions=["low-light", "noise", "blur"])
    assert "states sharpening None, this model has" in run(), "what it looks with comes first"
    with pytest.raises(CheckpointError, match=r"or fit one to it: python -m dod\.training\.sharpening"):
        load_model(folder)
    change(folder, conditions=["blur"])
    fits = ["--crop", "192", "--samples", "160", "--steps", "150", "--save-every", "150", "--batch", "64"]
    assert run_command(sharpening.main, [*argv, *fits, "--more", "blur"]) == 0
    assert "blur, clean: all of them go past the model" in run(*fits)
    change(folder, conditions=["low-light", "noise", "blur"])
    capsys.readouterr()
    assert run_command(bypass.main, [*argv, *fits]) == 0
    assert "PSNR of" in (printed := capsys.readouterr().out) and "step 150: loss" in printed
    model = load_model(folder)
    part = model.decoder.bypass
    assert part is not None and model.decoder.sharpening is not None
    assert [each["stage"] for each in read_metadata(folder / "dod")["training"]] == ["sharpening", "bypass"]
    shares: dict[str, list[float]] = {}
    for kind in ("blur", "noise", "low-light"):
        pairs = PhotographCrops(folder / "photographs", 192, 99, (kind,), 0.0, windows=1)
        for i in range(8):
            degraded = pairs[i][0][None]
            with torch.no_grad():
                features = model.encoder(degraded)[1][0]
                levels = model.decoder.sharpening(features)[1]
                given = part(degraded - 0.5, features, levels) - (degraded - 0.5)
            shares.setdefault(kind, []).append(given.mean().item() / 0.5)
    assert np.mean(shares["blur"]) > 0.8 and np.mean(shares["noise"] + shares["low-light"]) < 0.2
