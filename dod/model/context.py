"""Modulation of the forward pass that runs on a thread.

Conditional layers read it from a thread-local variable. This is re-entrant and thread-safe, leaves nothing on the
modules, and can be traced by torch.export and by torch.compile with fullgraph=True, which refuses context variables.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Affine", "call", "current_modulation", "modulated"]


@dataclass(frozen=True)
class Affine:
    """Modulation, and its split into gamma (at index 2 i) and beta (at 2 i + 1) of each layer i.

    Attributes:
        modulation: [B, N, 2, r].
        linear: 2 N tensors [B, 1, r], which broadcast with the output of a linear layer.
        convolution: 2 N tensors [B, r, 1, 1], which broadcast with the output of a convolution.
    """

    modulation: Tensor
    linear: tuple[Tensor, ...]
    convolution: tuple[Tensor, ...]


class Call(threading.local):
    """State of the forward pass that runs on this thread."""

    affine: Affine | None = None


call = Call()


@contextmanager
def modulated(modulation: Tensor | None) -> Iterator[None]:
    """Set the modulation that conditional layers read inside the `with` block.

    Args:
        modulation: gamma and beta of the N conditional layers, [B, N, 2, r]. None for models without such layers.
    """
    affine = None
    if modulation is not None:
        flat, rank = modulation.flatten(1), modulation.shape[-1]
        affine = Affine(modulation, flat[:, None].split(rank, dim=2), flat[:, :, None, None].split(rank, dim=1))
    before, call.affine = call.affine, affine
    try:
        yield
    finally:
        call.affine = before


def current_modulation() -> Tensor | None:
    """Return the modulation [B, N, 2, r] of the forward pass that runs on this thread, None outside `modulated`."""
    return None if call.affine is None else call.affine.modulation
