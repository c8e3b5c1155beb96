"""Options of a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BuildOptions"]


@dataclass(frozen=True)
class BuildOptions:
    """Options of one build, as the command or another caller gives them.

    Attributes:
        checkpoint: checkpoint folder, or a preset's name or folder.
        base: folder of the Stable Diffusion base, None for the preset's.
        ddpm: folder of the DDPM, None for the preset's.
        out: the bundle's folder.
        targets: names of the targets to build.
        precisions: precisions of the graphs, `fp32` and `fp16` in this order.
        measured_precisions: further precisions to measure, `bf16` and `int8`. One of them always ends the build with
            the measured result, without a bundle.
        conditions: condition paths to build, None for all of the checkpoint.
        engine_conditions: conditions that get a TensorRT engine, empty for none, None for all that are built.
        refit: build one merged UNet engine that is refitted for each condition.
        size: minimum, optimal and maximum side of the graphs and engines, in pixels.
        batch: minimum (always 1), optimal and maximum batch size.
        capabilities: compute capabilities of the GPUs that `tensorrt_rtx` engines are built for.
        fp32_modules: modules kept in fp32 in the fp16 graphs, None to search for a small set by
            measurement.
        images: folder of calibration images, None for the samples of the documentation.
        workers: number of graphs traced, or engines built, at a time.
        force: replace a bundle of another model, or one with conditions that this build leaves out.
        explain: say which files are cached and which are stale, and build nothing.
    """

    checkpoint: str
    base: str | None
    ddpm: str | None
    out: Path
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    measured_precisions: tuple[str, ...]
    conditions: Sequence[str] | None
    engine_conditions: Sequence[str] | None
    refit: bool
    size: tuple[int, int, int]
    batch: tuple[int, int, int]
    capabilities: tuple[str, ...]
    fp32_modules: Sequence[str] | None
    images: Path | None
    workers: int
    force: bool = False
    explain: bool = False
