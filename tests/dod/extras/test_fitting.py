"""Shared parts of the fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dod.extras.fitting import HELD_BACK, run_with_dropout, split, step
from dod.training.state import Schedule
from tests.dod.small_model import normal


def test_one_sample_of_twenty_is_held_back() -> None:
    fitted, held_back = split(3 * HELD_BACK)
    assert held_back.tolist() == [HELD_BACK - 1, 2 * HELD_BACK - 1, 3 * HELD_BACK - 1]
    assert sorted([*fitted.tolist(), *held_back.tolist()]) == list(range(3 * HELD_BACK))


def test_dropout_follows_each_relu_in_training_mode_only() -> None:
    torch.manual_seed(0)
    network, dropout, x = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1)), nn.Dropout(0.5), normal(3, 4)
    with torch.no_grad():
        expected = network(x)
        assert not torch.allclose(run_with_dropout(network, x, dropout), expected, atol=1e-3)
        torch.testing.assert_close(run_with_dropout(network, x, dropout.eval()), expected)


def test_a_group_has_its_own_learning_rate() -> None:
    schedule = Schedule(steps=10, warmup=0, learning_rate=0.5)
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [fast]}, {"params": [slow], "lr_multiplier": 0.1}], lr=1.0)
    step(optimizer, (slow + fast).sum() * 1e-3, schedule, 0)
    assert fast.item() == pytest.approx(-0.5e-3) and slow.item() == pytest.approx(-0.05e-3)
