"""Training crops of clean photographs, degraded synthetically. Each sample is a function of (seed, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dod.data.augmentations import add_mist, jitter_colors, random_orientation
from dod.data.capture import SHARP, Capture, random_capture, record, soften
from dod.data.degradations import DEGRADATIONS, degrade
from dod.data.images import SUFFIXES, FloatImage, Pixels, read_rgb
from dod.errors import DataError

__all__ = ["CLEAN", "PhotographCrops", "check_settings", "load_photographs", "to_tensor"]

CLEAN = "clean"
"""Name of the class of undegraded samples."""
_SOFTENED_BEFORE = ("noise", "blur")
"""Degradations that arise in the camera, on an image that is already soft. The others are part of the scene and soften
with it.
"""


def load_photographs(folder: str | Path) -> dict[str, Pixels]:
    """Read every image directly in a folder.

    Args:
        folder: the folder; subfolders are ignored.

    Returns:
        RGB uint8 [H, W, 3] by file name, sorted by name.

    Raises:
        DataError: the folder is missing, has no images, or has an unreadable one.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(
            f"no photographs in {folder}: `dod-train photographs {folder.parent}` downloads those of this project"
        )
    return {path.name: read_rgb(path) for path in paths}


def check_settings(crop: int, degradations: Sequence[str], clean_fraction: float) -> None:
    """Check the settings that all data sets share.

    Args:
        crop: side of the crops in px.
        degradations: names of degradations.
        clean_fraction: fraction of clean samples.

    Raises:
        DataError: unknown degradation, crop below 1 px, or fraction outside 0 to 1.
    """
    if unknown := [name for name in degradations if name not in DEGRADATIONS]:
        raise DataError(f"unknown degradation {unknown[0]!r}: it is one of {', '.join(DEGRADATIONS)}")
    if crop < 1:
        raise DataError(f"a crop must be at least 1 px, not {crop}")
    if not 0 <= clean_fraction <= 1:
        raise DataError(f"the fraction of clean samples must be between 0 and 1, not {clean_fraction}")


def to_tensor(image: FloatImage) -> Tensor:
    """Convert an image to a tensor for the model.

    Args:
        image: float32 [H, W, 3] in 0 to 1.

    Returns:
        float32 [3, H, W] in -1 to 1.
    """
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) * 2 - 1


class PhotographCrops(Dataset[tuple[Tensor, Tensor, int]]):
    """Training samples (degraded, clean, index) from photographs held in memory: float32 [3, crop, crop] in -1 to 1.

    `index` counts in `names`: the degradations, then "clean". Two thirds of the crops have native resolution; the
    others come from a window up to twice as large, reduced. All are rotated and mirrored at random. Sample i is a
    function of (seed, i), so worker processes and resumed runs see the same samples, and shuffling has no use.

    With a capture (`dod.data.capture`), both images are resized and blurred, before noise and blur are applied and
    after other degradations; the degraded image then gets sensor noise and JPEG artifacts.

    Args:
        folder: folder of clean photographs.
        crop: side of the crops in px.
        seed: seed of all samples.
        degradations: degradations, all equally frequent.
        clean_fraction: fraction of samples that are not degraded.
        length: number of samples; it only sets where a sequential sampler stops.
        color_jitter: fraction of crops with changed colors (`augmentations.jitter_colors`): a small set of photographs
            has few hues.
        mist: fraction of crops with mist that the restoration must preserve (`augmentations.add_mist`).
        crop_candidates: number of windows from which the most detailed is taken. Flat sky teaches little, but a model
            that never sees any takes a pale scene for haze.
        oversample: degradations that are drawn once more for each time they are listed.
        soft: fraction of samples with a random capture.

    Raises:
        DataError: bad settings, or photographs that are missing, unreadable or smaller than `crop`.
    """

    def __init__(
        self,
        folder: str | Path,
        crop: int,
        seed: int,
        degradations: Sequence[str] = DEGRADATIONS,
        clean_fraction: float = 0.1,
        length: int = 1 << 40,
        *,
        color_jitter: float = 0.0,
        mist: float = 0.0,
        crop_candidates: int = 2,
        oversample: Sequence[str] = (),
        soft: float = 0.0,
    ) -> None:
        check_settings(crop, degradations, clean_fraction)
        if crop_candidates < 1:
            raise DataError(f"crop_candidates must be at least 1, not {crop_candidates}")
        if unknown := [name for name in oversample if name not in degradations]:
            shown = ", ".join(degradations) or "none"
            raise DataError(f"cannot oversample {unknown[0]!r}: the degradations are {shown}")
        if not degradations and clean_fraction < 1:
            raise DataError("no degradation to train on: name at least one, or set the fraction of clean samples to 1")
        photographs = load_photographs(folder)
        for name, photograph in photographs.items():
            if min(photograph.shape[:2]) < crop:
                height, width = photograph.shape[:2]
                raise DataError(
                    f"{Path(folder) / name} is {width}x{height}, smaller than a crop of {crop} px: "
                    "remove it or train on smaller crops"
                )
        self.names = (*degradations, CLEAN)
        self.crop = crop
        self.seed = seed
        self.clean_fraction = clean_fraction
        self.color_jitter = color_jitter
        self.mist = mist
        self.crop_candidates = crop_candidates
        self.oversample = tuple(oversample)
        self.soft = soft
        self._drawn = (*range(len(degradations)), *(self.names.index(name) for name in self.oversample))
        self._photographs = list(photographs.values())
        self._files = list(photographs)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        if not 0 <= i < self._length:
            raise IndexError(f"sample {i} of {self._length}")
        rng = np.random.default_rng((self.seed, i))
        capture = SHARP
        if self.soft and np.random.default_rng((self.seed, i, 1)).random() < self.soft:
            capture = random_capture(np.random.default_rng((self.seed, i, 2)))
        clean = self._clean_crop(rng, capture.scale)
        if rng.random() < self.clean_fraction:
            index = len(self.names) - 1
        else:
            index = self._drawn[rng.integers(len(self._drawn))]
        degraded, clean = self._apply_capture(clean, self.names[index], capture, rng)
        return to_tensor(degraded), to_tensor(clean), index

    def _apply_capture(
        self, clean: FloatImage, name: str, capture: Capture, rng: np.random.Generator
    ) -> tuple[FloatImage, FloatImage]:
        """Return (degraded, clean) at crop size from a clean window at its own size."""
        size = self.crop, self.crop
        if name in _SOFTENED_BEFORE:
            clean = soften(clean, capture, size)
            degraded = degrade(clean, name, rng)[0]
        else:
            degraded = clean if name == CLEAN else degrade(clean, name, rng)[0]
            degraded, clean = soften(degraded, capture, size), soften(clean, capture, size)
        return degraded if capture == SHARP else record(degraded, capture, rng), clean

    @property
    def identity(self) -> dict[str, object]:
        """Everything that determines the samples, as JSON values: a run resumes only with the same identity."""
        digest = hashlib.sha256()
        for photograph in self._photographs:
            digest.update(repr(photograph.shape).encode() + photograph.tobytes())
        return {
            "degradations": self.names,
            "crop": self.crop,
            "seed": self.seed,
            "clean_fraction": self.clean_fraction,
            "color_jitter": self.color_jitter,
            "mist": self.mist,
            "crop_candidates": self.crop_candidates,
            "oversample": self.oversample,
            "soft": self.soft,
            "photographs": digest.hexdigest(),
        }

    def describe(self, i: int) -> str:
        """Return the file name of the photograph that a sample is taken from, for messages.

        Args:
            i: index of the sample.

        Returns:
            The file name.
        """
        return self._files[np.random.default_rng((self.seed, i)).integers(len(self._files))]  # the first draw

    def _clean_crop(self, rng: np.random.Generator, scale: float) -> FloatImage:
        """Return a clean window [N, N, 3] whose size, resized by about `scale`, is that of a crop."""
        photograph = self._photographs[rng.integers(len(self._photographs))]
        reduction = rng.uniform(1, 2) if rng.random() < 1 / 3 else 1.0
        wanted = min(max(1, round(self.crop / scale)), *photograph.shape[:2])
        size = min(round(wanted * reduction), *photograph.shape[:2])
        window = max((self._window(photograph, size, rng) for _ in range(self.crop_candidates)), key=_detail)
        if size != wanted:
            reduced = Image.fromarray(window).resize((wanted, wanted), Image.Resampling.LANCZOS)
            window = np.asarray(reduced)
        crop = random_orientation(rng, window)[0]
        if self.color_jitter and rng.random() < self.color_jitter:
            crop = jitter_colors(crop, rng)
        return add_mist(crop, rng) if self.mist and rng.random() < self.mist else crop

    @staticmethod
    def _window(photograph: Pixels, size: int, rng: np.random.Generator) -> Pixels:
        height, width = photograph.shape[:2]
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        return photograph[top : top + size, left : left + size]


def _detail(window: Pixels) -> float:
    """Return the sum of absolute differences between green pixels two apart."""
    green = window[::2, ::2, 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=0)).sum() + np.abs(np.diff(green, axis=1)).sum())
