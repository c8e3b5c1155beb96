"""How the post-processing is fitted: second moments, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dod.checkpoint import load_model, read_metadata
from dod.data.dataset import PhotographCrops
from dod.errors import CheckpointError, run_command
from dod.extras import postprocess
from dod.extras.moments import Moments, moments_of, turned_orders, without_mean
from tests.dod.small_fits import POSTPROCESS, change, photographed
from tests.dod.small_model import image, normal, snr_db


def filtered(luma: Tensor, kernel: Tensor, reach: int) -> Tensor:
    around = F.pad(luma[None, None].double(), (reach,) * 4, mode="circular")
    return F.conv2d(around, kernel[None, None].double())[0, 0].float()


def moments(*pair: Tensor, taps: int = 5) -> Moments:
    luma, error, squared = moments_of(*pair, taps)
    return Moments(torch.zeros(1, 2), luma[None], error[None], squared[None], torch.ones(1, dtype=torch.bool))


def test_the_moments_say_what_a_kernel_leaves() -> None:
    kernel, other = without_mean(normal(2, 5, 5))
    degraded = image(1, 32, 48)[0]
    added = filtered(degraded.mean(0), kernel, 2)
    found = moments(degraded, degraded + added)
    assert found.left(0 * kernel[None]).item() == pytest.approx(3 * added.square().mean().item(), rel=1e-4)
    assert found.left(kernel[None]).item() < 1e-4
    left = added - filtered(degraded.mean(0), other, 2)
    assert found.left(other[None]).item() == pytest.approx(3 * left.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_image_has_turned_moments(turn: int) -> None:
    square, clean = normal(3, 41, 41), normal(3, 41, 41, seed=1)

    def turned(value: Tensor) -> Tensor:
        value = torch.rot90(value, turn % 4, (1, 2))
        return (value.flip(2) if turn >= 4 else value).contiguous()

    after = moments(turned(square), turned(clean))
    expected = moments(square, clean).taken(torch.tensor([0]), turn)
    for name in ("luma", "error", "squared"):
        assert snr_db(getattr(after, name), getattr(expected, name)) >= 80, name
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in turned_orders(9))


def test_the_command_fits_gate_and_kernel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = photographed(folder)

    def refused(*more: str) -> str:
        assert run_command(postprocess.main, [*argv, *more]) == 2
        return capsys.readouterr().err

    assert "postprocess" in refused()
    change(folder, postprocess=POSTPROCESS, conditions=["blur"])
    assert "pass the model (blur)" in refused()
    change(folder, conditions=["low-light", "noise", "blur"])
    assert "--crop 101" in refused("--crop", "101")
    assert "--num-samples 3" in refused("--samples", "3")
    with pytest.raises(CheckpointError, match=r"dod\.extras\.postprocess"):
        load_model(folder)
    fit = ["--crop", "192", "--samples", "200", "--pairs", "240", "--steps", "300", "--save-every", "300"]
    assert run_command(postprocess.main, [*argv, *fit, "--batch", "64"]) == 0
    printed = capsys.readouterr().out
    assert "dB" in printed and "mean share" in printed
    assert [each["stage"] for each in read_metadata(folder / "dod")["training"]] == ["postprocess"]
    model: Any = load_model(folder)
    shares: dict[str, list[float]] = {}
    gains = []
    for kind in ("blur", "noise", "low-light"):
        pairs = PhotographCrops(folder / "photographs", 192, 99, (kind,), 0.0, crop_candidates=1)
        for degraded, clean, _ in (pairs[i] for i in range(8)):
            with torch.no_grad():
                crops = model.crops(degraded[None])
                share, mix = model.gate(crops, model.mfm.condition(crops))
                sharpened = model.postprocess(0 * degraded[None], degraded[None], torch.ones(1, 1), mix)[0]
            shares.setdefault(kind, []).append(share.item())
            if kind == "blur":
                before, after = ((clean - each).square().mean().item() for each in (degraded, sharpened))
                gains.append(10 * np.log10(before / after))
    assert np.mean(shares["blur"]) > 0.7 and np.mean(shares["noise"] + shares["low-light"]) < 0.3
    assert np.mean(gains) > 0.1
    assert not list((folder / "dod").glob(".*"))
