"""Second moments of images, compared with filtering and turning the images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dod.extras.moments import Moments, moments_of, turned_orders, without_mean
from tests.dod.small_model import image, normal, snr_db


def filtered(luma: Tensor, kernel: Tensor, reach: int) -> Tensor:
    around = F.pad(luma[None, None].double(), (reach,) * 4, mode="circular")
    return F.conv2d(around, kernel[None, None].double())[0, 0].float()


def moments(*pair: Tensor, taps: int = 5) -> Moments:
    luma, error, squared = moments_of(*pair, taps)
    return Moments(torch.zeros(1, 2), luma[None], error[None], squared[None], torch.ones(1, dtype=torch.bool))


def test_the_moments_predict_the_remaining_error() -> None:
    kernel, other = without_mean(normal(2, 5, 5))
    degraded = image(1, 32, 48)[0]
    added = filtered(degraded.mean(0), kernel, 2)
    found = moments(degraded, degraded + added)
    assert found.remaining_error(0 * kernel[None]).item() == pytest.approx(3 * added.square().mean().item(), rel=1e-4)
    assert found.remaining_error(kernel[None]).item() < 1e-4
    remaining = added - filtered(degraded.mean(0), other, 2)
    assert found.remaining_error(other[None]).item() == pytest.approx(3 * remaining.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_image_has_turned_moments(turn: int) -> None:
    square, clean = normal(3, 41, 41), normal(3, 41, 41, seed=1)

    def turned(value: Tensor) -> Tensor:
        value = torch.rot90(value, turn % 4, (1, 2))
        return (value.flip(2) if turn >= 4 else value).contiguous()

    after = moments(turned(square), turned(clean))
    expected = moments(square, clean).select(torch.tensor([0]), turn)
    for name in ("luma", "error", "squared"):
        assert snr_db(getattr(after, name), getattr(expected, name)) >= 80, name
    assert all(sorted(order.tolist()) == list(range(len(order))) for order in turned_orders(9))
