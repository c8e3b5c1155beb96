"""Checks before a build starts: everything that can be refused before weights are loaded."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import psutil

from dod.config import Preset
from dod.model.dod import DOD
from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.errors import UsageError

__all__ = ["check_exportable", "check_memory", "check_out", "check_room", "check_sizes", "image_paths"]

OVERHEAD = 1_500_000_000
"""Bytes that a build needs apart from weights: libraries, two tracing processes, one image's activations."""
SAMPLES = Path(__file__).resolve().parent.parent / "docs" / "samples"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def check_exportable(preset: Preset) -> None:
    """Refuse the ablations that the export has no graphs for.

    Args:
        preset: the preset with the switches of the checkpoint.

    Raises:
        UsageError: the UNet is not the only part with conditional layers.
    """
    conditional = preset.lora.conditional
    if conditional != "unet":
        lacking = "a model without conditional layers" if conditional == "none" else "a conditional encoder"
        raise UsageError(
            f"lora.conditional = {conditional} is for training only, and the export has no graphs for {lacking}: "
            "train with lora.conditional = unet"
        )


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be replaced by a bundle.

    Args:
        out: the bundle's folder, which may exist.

    Raises:
        UsageError: it is a link, `.` or `..`, or holds other files than a bundle's.
    """
    if out.name in ("", ".."):
        raise UsageError(f"--out {out} has no name of its own: name the folder, such as {out.resolve() / 'bundle'}")
    if out.is_symlink():
        raise UsageError(f"--out {out} is a link: name the folder that it leads to, {out.resolve()}")
    if out.is_file() or (out.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir())):
        raise UsageError(f"--out {out} holds files that are not a bundle's: choose another folder")


def check_sizes(size: Sequence[int], batch: Sequence[int], multiple: int) -> None:
    """Refuse image and batch sizes that no engine can be built for.

    Args:
        size: minimum, optimal and maximum side in pixels.
        batch: minimum (always 1), optimal and maximum batch size.
        multiple: number of pixels that the sides must be a multiple of.

    Raises:
        UsageError: a side is not a multiple, or the sizes are not in order. The message names the nearest valid ones.
    """
    for option, side in zip(("--min-size", "--opt-size", "--max-size"), size, strict=True):
        if side < multiple or side % multiple:
            below = max(multiple, side // multiple * multiple)
            raise UsageError(
                f"{option} {side}: sides must be multiples of {multiple} px; the nearest are {below} and "
                f"{below + multiple}"
            )
    if not size[0] <= size[1] <= size[2]:
        least, optimal, largest = sorted(size)
        raise UsageError(
            f"sizes must satisfy --min-size <= --opt-size <= --max-size, found {size[0]}, {size[1]}, {size[2]}: in "
            f"order they are --min-size {least} --opt-size {optimal} --max-size {largest}"
        )
    if batch[1] < 1:
        raise UsageError(f"--opt-batch {batch[1]}: it must be at least 1")
    if batch[2] < batch[1]:
        raise UsageError(
            f"--opt-batch {batch[1]} --max-batch {batch[2]}: the optimal batch size must not exceed the largest"
        )


def image_paths(folder: Path | None) -> tuple[Path, ...]:
    """Return the calibration images of a folder, sorted by name.

    Args:
        folder: the folder, None for the samples of the documentation.

    Raises:
        UsageError: there are no images, or two of them have the same name apart from the suffix.
    """
    folder = folder or SAMPLES
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"no images in {folder}: name a folder that has some with --images")
    for first, second in pairwise(paths):
        if first.stem == second.stem:
            raise UsageError(f"two images are called {first.stem}, {first.name} and {second.name}: rename one")
    return tuple(paths)


def check_room(out: Path, model: DOD, precisions: int, engine_targets: int) -> None:
    """Refuse a disk that cannot hold the bundle, by a rough estimate from the number of parameters.

    Files of an interrupted build, and of the bundle that is replaced, count as free: they are taken over or deleted.

    Args:
        out: the bundle's folder.
        model: the model, which may be on the meta device.
        precisions: number of precisions that graphs are written in.
        engine_targets: number of targets that engines are built for.

    Raises:
        OSError: there is too little room.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = parameters * 4 * precisions + parameters * 2 * 8 * engine_targets
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    # By inode: a file that is taken over is in both folders.
    files = (path for folder in (out, out.with_name(f"{out.name}.partial")) for path in folder.rglob("*"))
    sizes = {path.stat().st_ino: path.stat().st_size for path in files if path.is_file()}
    free = shutil.disk_usage(existing).free + sum(sizes.values())
    if free < needed:
        room = f"the build needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, f"no room on the disk: {room}", str(out))


def check_memory(model: DOD) -> None:
    """Refuse a machine whose memory cannot hold the build, by an estimate from the number of parameters.

    The peak is reached in the parity checks: the model in fp32, the weights of a UNet, and what a backend repacks or
    the fp16 copy holds of them.

    Args:
        model: the model, which may be on the meta device.

    Raises:
        OSError: there is too little memory.
    """
    whole, unet = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.unet))
    needed, free = 4 * whole + 2 * 4 * unet + OVERHEAD, psutil.virtual_memory().available
    if free < needed:
        room = f"the build needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOMEM, f"not enough memory: {room}: end other programs, or build on a larger machine")
