"""Shared parts of the fits of gate and kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..training.state import Schedule

__all__ = ["HELD_BACK", "run_with_dropout", "split", "step"]

HELD_BACK = 20
"""One of this many samples is not fitted to, but measured with."""


def split(count: int) -> tuple[Tensor, Tensor]:
    """Split samples into those to fit to and those to measure with.

    Args:
        count: number of samples.

    Returns:
        Indices of both.
    """
    held_back = torch.arange(count) % HELD_BACK == HELD_BACK - 1
    return (~held_back).nonzero()[:, 0], held_back.nonzero()[:, 0]


def run_with_dropout(network: nn.Sequential, x: Tensor, dropout: nn.Dropout) -> Tensor:
    """Run a network with dropout after each ReLU.

    Args:
        network: the network.
        x: its input.
        dropout: the dropout, which is off in evaluation mode.

    Returns:
        The output of the network.
    """
    for layer in network:
        x = dropout(layer(x)) if isinstance(layer, nn.ReLU) else layer(x)
    return x


def step(optimizer: torch.optim.Optimizer, loss: Tensor, schedule: Schedule, index: int) -> None:
    """Take an optimizer step.

    Args:
        optimizer: optimizer whose groups may have an "lr_multiplier".
        loss: scalar to minimize.
        schedule: learning rate and maximum norm of the gradient.
        index: index of the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate_at(index) * group.get("lr_multiplier", 1.0)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], schedule.clip)
    optimizer.step()
