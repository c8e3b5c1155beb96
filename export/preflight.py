"""What a build is asked for, what it is checked for before it starts, and the identity of its model."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from dod.config import Preset
from dod.model.dod import DOD
from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
MODEL_MODULES = [
    "__init__",
    "checkpoint",
    "config",
    "errors",
    "tensors",
    "validation",
    "model/__init__",
    "model/adm",
    "model/base",
    "model/clora",
    "model/closed_form",
    "model/context",
    "model/detail",
    "model/dod",
    "model/modulation",
    "model/networks",
    "model/postprocess",
]
"""The modules of `dod` that a loaded model runs: a graph traced before one of them changed is stale."""
MODEL_SOURCES = [
    *(ROOT / "dod" / f"{name}.py" for name in MODEL_MODULES),
    ROOT / "export" / "graphs" / "components.py",
    ROOT / "export" / "graphs" / "fp16.py",
    ROOT / "export" / "graphs" / "group_norm.py",
    ROOT / "export" / "graphs" / "lora_op.py",
    ROOT / "export" / "graphs" / "optimize.py",
    ROOT / "export" / "graphs" / "simplify.py",
    ROOT / "export" / "graphs" / "trace.py",
]
OVERHEAD = 1_500_000_000
"""Bytes that a build takes beside weights: libraries, two tracing processes, an image's activations."""
SAMPLES = ROOT / "docs" / "samples"
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Options:
    """What the command was asked for. size: (min, opt, max) in pixels; batch likewise; gate: precisions that are only
    measured; force: replace a bundle of another model."""

    checkpoint: str
    base: str | None
    ddpm: str | None
    out: Path
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    conditions: Sequence[str] | None
    engine_conditions: Sequence[str] | None
    refit: bool
    size: tuple[int, int, int]
    batch: tuple[int, int, int]
    capabilities: tuple[str, ...]
    fp32_modules: Sequence[str] | None
    gate: tuple[str, ...]
    samples: Path | None
    workers: int
    force: bool = False


def check_exportable(preset: Preset) -> None:
    """UsageError where a preset is that of an ablation for which there is no path."""
    conditional = preset.lora.conditional
    if conditional != "unet":
        lacking = "a model without conditional layers" if conditional == "none" else "a conditional encoder"
        raise UsageError(
            f"lora.conditional = {conditional} is for training only: export has no path for {lacking}; "
            "train with lora.conditional = unet"
        )


def check_out(out: Path) -> None:
    """UsageError where `out` holds something else than a bundle, or cannot be replaced at once: a link, `.`, `..`."""
    if out.name in ("", ".."):
        raise UsageError(f"--out {out}: name the folder itself, such as {out.resolve() / 'bundle'}")
    if out.is_symlink():
        raise UsageError(f"--out {out} is a link: name the folder that it leads to, {out.resolve()}")
    if out.is_file() or (out.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir())):
        raise UsageError(f"--out {out} holds other files than a bundle's: choose another folder")


def check_sizes(size: Sequence[int], batch: Sequence[int], multiple: int) -> None:
    """UsageError where a side is no multiple of the model's, or an order is wrong; names the nearest legal sizes."""
    for option, side in zip(("--min", "--opt", "--max"), size, strict=True):
        if side < multiple or side % multiple:
            below = max(multiple, side // multiple * multiple)
            raise UsageError(
                f"{option} {side}: sides are multiples of {multiple} px; the nearest are {below} and {below + multiple}"
            )
    if not size[0] <= size[1] <= size[2]:
        least, usual, most = sorted(size)
        raise UsageError(
            f"sizes must be --min <= --opt <= --max, found {size[0]}, {size[1]}, {size[2]}; in order they are "
            f"--min {least} --opt {usual} --max {most}"
        )
    if batch[1] < 1:
        raise UsageError(f"--batch takes positive numbers, found {batch[1]}")
    if batch[2] < batch[1]:
        raise UsageError(f"--batch {batch[1]} {batch[2]}: the usual batch comes first, then the largest")


def sample_paths(folder: Path | None) -> list[Path]:
    """The photographs of the parity figures. UsageError where there are none, or two whose report has one name."""
    folder = folder or SAMPLES
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGES)
    if not paths:
        raise UsageError(f"no photographs in {folder}: give a folder of images with --samples")
    for first, second in pairwise(paths):
        if first.stem == second.stem:
            raise UsageError(f"two samples are called {first.stem}, {first.name} and {second.name}: rename one")
    return paths


def hash_samples(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each photograph, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_room(out: Path, model: DOD, precisions: int, engine_targets: int) -> None:
    """OSError before the work starts where the disk cannot hold the bundle, by a rough estimate from the parameters.

    What an interrupted build has left, or a bundle that is there already, is taken over as far as it is fresh: it
    counts as room.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = parameters * 4 * precisions + parameters * 2 * 8 * engine_targets
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    # Inode by inode: a file that is taken over lies in both folders.
    made = (path for folder in (out, out.with_name(f"{out.name}.partial")) for path in folder.rglob("*"))
    sizes = {path.stat().st_ino: path.stat().st_size for path in made if path.is_file()}
    free = shutil.disk_usage(existing).free + sum(sizes.values())
    if free < needed:
        room = f"the build needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, f"no room on the disk: {room}", str(out))


def check_memory(model: DOD) -> None:
    """OSError before the work starts where the memory cannot hold it, by an estimate from the parameters.

    The most is held while a path is proven: the model in float32, and twice a UNet (its weights, and what a backend
    packs for the processor or the half copy of it takes).
    """
    whole, unet = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.unet))
    needed, free = 4 * whole + 2 * 4 * unet + OVERHEAD, psutil.virtual_memory().available
    if free < needed:
        room = f"the build needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOMEM, f"not enough memory: {room}: end other programs or build on a larger machine")


def settings_of(model: DOD) -> dict[str, Any]:
    """What decides a model's graphs and is in no tensor, for JSON: of its preset and the base's configuration."""
    preset, unet = model.preset, model.unet.unet.config
    return {
        **{name: asdict(getattr(preset, name)) for name in ("mfm", "lora", "step", "detail")},
        "postprocess": None if preset.postprocess is None else asdict(preset.postprocess),
        "unet": {name: value for name, value in unet.items() if not name.startswith("_")},
        "scaling_factor": model.encoder.scaling_factor,
    }


def hash_model(model: DOD) -> str:
    """SHA-256 over what was trained and the prototypes, in float32."""
    prototypes = {f"prototype.{name}": value for name, value in model.prototypes.items()}
    return hash_tensors(model.trained_tensors() | prototypes)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values, in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().data)
    return digest.hexdigest()
