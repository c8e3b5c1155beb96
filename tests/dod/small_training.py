"""Training runs of seconds: images, a schedule, and the arguments of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from dod.errors import run_command
from dod.training.state import Schedule
from tests.dod.small_model import image, normal

QUICK = Schedule(steps=4, batch_size=2, crop=16, learning_rate=1e-2, warmup=1, workers=0, save_every=2)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of noisy and clean images. Sample `stop` raises KeyboardInterrupt."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == self.stop:
            raise KeyboardInterrupt
        clean = image(1, 16, 16, seed=i)[0]
        return (clean + 0.2 * normal(3, 16, 16, seed=i)).clamp(-1, 1), clean


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(main: Any, name: str, folder: Path, *more: str) -> int:
    """Run a training command of two steps on the preset in `folder`; return its exit code."""
    argv = [name, "--photographs", str(folder / "photographs"), "--checkpoint", str(folder)]
    options = {"--crop": "32"}
    if name == "calibrate":
        options |= {"--num-samples": "2"}
    else:
        options |= {"--steps": "2", "--state": str(folder / "state"), "--batch-size": "2", "--workers": "0"}
    return run_command(main, [*argv, *(word for pair in options.items() for word in pair), *more])


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    """Return the arguments of a training command on the preset in `folder`."""
    paths = [
        "--photographs",
        str(folder / "photographs"),
        "--checkpoint",
        str(folder),
        "--state",
        str(folder / "state"),
    ]
    return [name, *paths, "--batch-size", "2", "--crop", "32", "--workers", "0", *more]
