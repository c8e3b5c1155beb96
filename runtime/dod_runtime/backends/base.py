"""What every backend has in common: its protocol, its options, and the choices that do not depend on the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Options:
    """What the caller asked for. device: index of the GPU. num_threads: of the CPU, None for all cores."""

    device: int = 0
    precision: str = "auto"
    num_threads: int | None = None


Shapes = tuple[tuple[int, ...], ...]


class Backend(Protocol):
    """Runs components by name. What `run` returns stays where it is (a GPU, say) until `to_numpy` fetches it."""

    name: str
    precision: str
    description: str
    conditions: tuple[str, ...]

    def open(self, path: Mapping[str, Shapes], condition: str | None = None) -> None:
        """Opens, inside a `chain`, what `run` needs for the components of a path, whose inputs have these shapes.

        The shapes are in the inputs' order. Without it `run` opens each when it is first needed. Raises as `run`.
        """
        ...

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, Any]:
        """Runs one component inside a `chain`. inputs: arrays, or what an earlier `run` of this chain returned.

        `condition` is needed by `unet_merged` alone. Raises BackendError.
        """
        ...

    def to_numpy(self, value: Any) -> np.ndarray:
        """The array behind a value that `run` returned."""
        ...

    def chain(self, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """Surrounds the components of one batch of images [B, 3, H, W]: no other thread's run comes between."""
        ...

    def stopwatch(self) -> Callable[[], float]:
        """Starts a clock on the device; the function returned gives the seconds since, all work so far done."""
        ...

    def close(self) -> None:
        """Frees everything. Twice is once."""
        ...


def choose_precision(asked: str, offered: tuple[str, ...], preferred: str) -> str | None:
    """The precision to use of those that a target offers; None where the one that was asked for is not among them."""
    if asked != "auto":
        return asked if asked in offered else None
    return preferred if preferred in offered else next(iter(offered), None)


def kept_sessions(weight_bytes: int, threshold: int = 4 << 30, most: int = 8) -> int:
    """How many merged UNets to keep loaded: as many as fit into `budget` bytes, from one to `most`."""
    return max(1, min(most, threshold // max(1, weight_bytes)))
