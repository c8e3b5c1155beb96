"""Runs to measure: one model on one condition path, from an image in memory to the restored one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dod_runtime.backends import ON_CPU
from dod_runtime.restorer import Observer, Restorer

__all__ = ["PARTS", "Job", "Runner"]

PARTS = ("mfm", "gate", "encoder", "unet", "decoder")
"""Components that are timed, in order. `unet` stands for both UNet graphs."""


class Model(Protocol):
    """Common interface of `dod_runtime.Restorer` and `TorchModel`."""

    @property
    def backend(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def description(self) -> str: ...

    def run_components(
        self, images: np.ndarray, crops: np.ndarray | None, condition: str, observe: Observer | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Job:
    """Work of one run.

    Attributes:
        pixels: The image, uint8 [H, W, 3].
        batch: Number of copies that are restored at once.
        condition: `auto` or a condition.
    """

    pixels: np.ndarray
    batch: int
    condition: str


@dataclass(eq=False)
class Runner:
    """One model and one job.

    Attributes:
        model: The model.
        restorer: Restorer that prepares and finishes the images of all runners, so that only the model differs.
        job: The job.
        output: The model's last result before it is rounded, float32 [B, 3, H, W], roughly in [-1, 1].
    """

    model: Model
    restorer: Restorer
    job: Job
    output: np.ndarray | None = None

    @property
    def device(self) -> str:
        """Device that computes: `cpu` or `cuda`."""
        return "cpu" if self.model.backend in ("pytorch_cpu", *ON_CPU) else "cuda"

    def visit(self) -> dict[str, float]:
        """Restore the job once and time it.

        On a GPU the image is timed in a run of its own, because each component's clock waits for the GPU.

        Returns:
            Seconds of each component, and of the `image` from preparation to the finished pixels.
        """
        seconds: dict[str, float] = {}

        def observe(component: str, elapsed: float) -> None:
            seconds[component.partition("_")[0]] = elapsed

        start = time.perf_counter_ns()
        self.restore(observe)
        if self.device == "cuda":
            start = time.perf_counter_ns()
            self.restore()
        return {**seconds, "image": (time.perf_counter_ns() - start) / 1e9}

    def restore(self, observe: Observer | None = None) -> np.ndarray:
        """Restore the job.

        Args:
            observe: Function that is called with each component and its seconds.

        Returns:
            The new `output`.
        """
        job = self.job
        prepared = [self.restorer.prepare(job.pixels, job.condition) for _ in range(job.batch)]
        crops = [each.crops for each in prepared if each.crops is not None]
        images = np.stack([each.image for each in prepared])
        output = self.model.run_components(images, np.stack(crops) if crops else None, job.condition, observe)
        for each, image in zip(prepared, output, strict=True):
            each.finish(image)
        self.output = output
        return output
