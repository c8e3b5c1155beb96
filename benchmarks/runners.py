"""What is measured: one model on one path, from an image in memory to the restored one, with each part's seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dod_runtime.backends import ON_CPU
from dod_runtime.restorer import Observer, Restorer

__all__ = ["PARTS", "Job", "Runner"]

PARTS = ("mfm", "gate", "encoder", "unet", "decoder")


class Model(Protocol):
    """What a `dod_runtime.Restorer` and a `TorchModel` have in common."""

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
    """The work: an image uint8 [H, W, 3], how many of it at once, and the path (`auto` or a condition)."""

    pixels: np.ndarray
    batch: int
    condition: str


@dataclass(eq=False)
class Runner:
    """One model at one job. `restorer` prepares and finishes the images of all, so that only the model differs.

    output: what the model gave last, before it is rounded to an image: float32 [B, 3, H, W], about [-1, 1].
    """

    model: Model
    restorer: Restorer
    job: Job
    output: np.ndarray | None = None

    @property
    def device(self) -> str:
        """`cpu` or `cuda`: where it computes."""
        return "cpu" if self.model.backend in ("pytorch_cpu", *ON_CPU) else "cuda"

    def visit(self) -> dict[str, float]:
        """Restores the job once. The seconds of each component, and of the `image`: prepare, components, finish.

        On a GPU the whole is measured by a run of its own, because each component's clock waits for the GPU.
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
        """Restores the job and returns `output`."""
        job = self.job
        prepared = [self.restorer.prepare(job.pixels, job.condition) for _ in range(job.batch)]
        crops = [each.crops for each in prepared if each.crops is not None]
        images = np.stack([each.image for each in prepared])
        output = self.model.run_components(images, np.stack(crops) if crops else None, job.condition, observe)
        for each, image in zip(prepared, output, strict=True):
            each.finish(image)
        self.output = output
        return output
