"""The sharpening filter: the periodogram, its effect, the moments it is fitted by, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dod.checkpoint import load_model
from dod.config import DetailConfig, SharpeningConfig
from dod.data.dataset import PhotographCrops
from dod.errors import CheckpointError, run_command
from dod.model import DOD
from dod.sharpening import FLOOR, HOP, Sharpening, frequencies
from dod.training import sharpening
from dod.training.apart import turned_order, turned_square
from tests.dod.small_fits import SHARPENING, change, photographed
from tests.dod.small_model import image, normal, snr_db, tiny

SMALL = SharpeningConfig(filters=3, taps=5, window=9, width=8)


def example(config: SharpeningConfig = SMALL, channels: int = 2) -> Sharpening:
    torch.manual_seed(0)
    return Sharpening(channels, config)


@torch.no_grad()
def test_it_begins_as_nothing_and_is_the_chosen_filters_sum() -> None:
    part, features = example(), normal(2, 2, 24, 33)
    assert part(features)[0].shape == (2, 1, 24, 33) and not part(features)[0].any()
    torch.nn.init.normal_(part.last.weight)
    luma = part.luma(features)
    gains = part.choice(part.levels(luma)).double()
    kernels = torch.einsum("br,rij->bij", gains, part.filters.weight[:, 0].double())
    assert gains.abs().max() > 0.1 and snr_db(kernels[0], kernels[1]) < 40, "each picture has a filter of its own"
    around = F.pad(luma.double(), (2, 2, 2, 2), mode="reflect")
    expected = torch.cat([F.conv2d(x[None], k[None, None]) for x, k in zip(around, kernels, strict=True)])
    added, levels = part(features)
    assert snr_db(expected, added) >= 100 and torch.equal(levels, part.levels(luma))
    assert all(each.dtype == torch.float32 for each in part.half()(features.half()))


@pytest.mark.parametrize("window", [9, 15])
def test_the_levels_are_those_of_welchs_periodogram(window: int) -> None:
    part = example(SharpeningConfig(3, 5, window, 8))
    luma = normal(1, 1, 40, 60).numpy()[0, 0]
    hann = np.outer(*[1 - np.cos(2 * np.pi * (np.arange(window) + 0.5) / window)] * 2)
    hann /= np.linalg.norm(hann)
    starts = [(y, x) for y in range(0, 41 - window, HOP) for x in range(0, 61 - window, HOP)]
    power = np.mean([np.abs(np.fft.fft2(luma[y : y + window, x : x + window] * hann)) ** 2 for y, x in starts], axis=0)
    grid = frequencies(window).numpy()
    expected = np.log(power[grid[:, 0] % window, grid[:, 1]] + FLOOR)
    assert len(grid) == (window**2 - 1) // 2 - 4
    assert snr_db(expected, part.levels(torch.from_numpy(luma)[None, None])[0]) >= 90
    assert snr_db(expected, part.levels(torch.from_numpy(luma + 3)[None, None])[0]) >= 60, "brightness is no level"


def test_the_decoder_adds_it_where_it_has_skips() -> None:
    model = DOD.from_preset(tiny(detail__sharpening={"filters": 3, "taps": 5, "window": 9, "width": 8}))
    assert set(model.fitted_parameters()) & set(model.trained_tensors()) == set(model.fitted_parameters())
    assert "sharpening" not in "".join(model.decoder.base_parameters())
    latent, part = normal(1, 4, 8, 8), model.decoder.sharpening
    assert part is not None
    with torch.no_grad():
        _, skips = model.encoder(image())
        before = model.decoder(latent, skips)
        torch.nn.init.normal_(part.last.weight)
        added = model.decoder(latent, skips) - before
        assert torch.allclose(added, part(skips[0])[0].expand_as(added), atol=1e-5) and added.any()
        assert torch.equal(model.decoder(latent), DOD.from_preset(tiny()).decoder(latent))
    assert DOD.from_preset(tiny(detail__enabled=False, detail__sharpening={})).decoder.sharpening is None
    assert DetailConfig().sharpening is None


class Shifted:
    """One pair of pictures: the clean one is the degraded one with a filter's result added, round the edges."""

    def __init__(self, kernel: Tensor) -> None:
        self.degraded, reach = image(1, 32, 48)[0], kernel.shape[-1] // 2
        self.added = filtered(self.degraded.mean(0), kernel, reach)
        self.clean = self.degraded + self.added

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.degraded, self.clean, 0


def filtered(luma: Tensor, kernel: Tensor, reach: int) -> Tensor:
    around = F.pad(luma[None, None].double(), (reach,) * 4, mode="circular")
    return F.conv2d(around, kernel[None, None].double())[0, 0].float()


def test_the_moments_say_what_a_filter_leaves() -> None:
    kernel, other = (sharpening._without_mean(normal(2, 5, 5))[i] for i in range(2))
    pairs: Any = Shifted(kernel)
    found = sharpening.measure(pairs, example(), 1)
    assert found.left(0 * kernel[None]).item() == pytest.approx(3 * pairs.added.square().mean().item(), rel=1e-4)
    assert found.left(kernel[None]).item() < 1e-4
    left = pairs.added - filtered(pairs.degraded.mean(0), other, 2)
    assert found.left(other[None]).item() == pytest.approx(3 * left.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_picture_has_turned_moments(turn: int) -> None:
    part, square = example(), normal(3, 41, 41)  # windows all over it lie as symmetrically as it does
    clean = square + normal(3, 41, 41, seed=1)
    before = sharpening.measure([(square, clean, 0)], part, 1)  # type: ignore[arg-type]
    turned = tuple(turned_square(each, turn).contiguous() for each in (square, clean))
    after = sharpening.measure([(*turned, 0)], part, 1)  # type: ignore[arg-type]
    expected = before.taken(torch.tensor([0]), turn, turned_order(frequencies(9), turn))
    for name in ("levels", "luma", "error", "squared"):
        assert snr_db(getattr(after, name), getattr(expected, name)) >= 80, name


def test_the_command_fits_what_sharpens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = photographed(folder)

    def run(*more: str) -> str:
        code = run_command(sharpening.main, [*argv, *more])
        assert code == 2
        return capsys.readouterr().err

    assert "has no detail.sharpening to be fitted: set it" in run()
    change(folder, {"sharpening": SHARPENING}, conditions=["noise", "haze"])
    assert "no condition 'blur': there is nothing to sharpen" in run()
    change(folder, conditions=["noise", "blur"])
    assert "--crop 101: the model takes multiples of" in run("--crop", "101")
    assert "--samples 3: it must be at least 20" in run("--samples", "3")
    with pytest.raises(CheckpointError, match="states sharpening None, .* or fit one to it"):
        load_model(folder)
    argv += ["--crop", "192", "--samples", "240", "--steps", "300", "--save-every", "300", "--batch", "64"]
    assert run_command(sharpening.main, [*argv, "--more", "blur", "blur", "blur"]) == 0
    printed = capsys.readouterr().out
    assert "PSNR of" in printed and "step 300: loss" in printed
    model = load_model(folder)
    part = model.decoder.sharpening
    assert part is not None
    pairs = PhotographCrops(folder / "photographs", 192, 99, ("blur",), 0.0, windows=1)
    gains = []
    for degraded, clean, _ in (pairs[i] for i in range(12)):
        with torch.no_grad():
            added = part(model.encoder(degraded[None])[1][0])[0][0]
        before, after = (each.square().mean().item() for each in (clean - degraded, clean - degraded - added))
        gains.append(10 * np.log10(before / after))
    assert np.mean(gains) > 0.1
    assert not list((folder / "dod").glob(".*"))
