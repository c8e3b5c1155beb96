"""Training crops: a photograph, a window of it, a degradation, all decided by (seed, index) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dod.data.capture import SHARP, Capture, random_capture, record, soften
from dod.data.degradations import DEGRADATIONS, degrade, depth_map
from dod.data.images import SUFFIXES, read_rgb
from dod.errors import DataError

__all__ = [
    "CLEAN",
    "PhotographCrops",
    "check_settings",
    "load_photographs",
    "to_tensor",
    "turned",
]

CLEAN = "clean"
SOFTENED_BEFORE = ("noise", "blur")
"""Degradations that a camera lays over what is soft already; the others lie in the scene, and soften with it."""


def load_photographs(folder: str | Path) -> dict[str, NDArray[np.uint8]]:
    """Every image directly in `folder` as RGB uint8 [H, W, 3], by file name, in the order of the names.

    Raises DataError for a folder that is missing or holds no image, and for an unreadable image, naming it.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(
            f"no photographs in {folder}: `python -m dod.data.photographs {folder.parent}` fetches this project's own"
        )
    return {path.name: read_rgb(path) for path in paths}


def check_settings(crop: int, degradations: Sequence[str], clean_fraction: float) -> None:
    """Raises DataError for an unknown degradation, a crop under 1 px, or a share outside 0 to 1."""
    if unknown := [name for name in degradations if name not in DEGRADATIONS]:
        raise DataError(f"unknown degradation {unknown[0]!r}: it is one of {', '.join(DEGRADATIONS)}")
    if crop < 1:
        raise DataError(f"a crop must be at least 1 px, not {crop}")
    if not 0 <= clean_fraction <= 1:
        raise DataError(f"the share of clean samples must be between 0 and 1, not {clean_fraction}")


def turned(rng: np.random.Generator, *windows: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Square windows [N, N, 3], all turned and flipped by one draw of the eight ways, as float32 in 0 to 1."""
    quarters, mirrored = int(rng.integers(4)), rng.random() < 0.5
    ways = [np.rot90(window, quarters)[:, :: -1 if mirrored else 1] for window in windows]
    return [np.ascontiguousarray(window, dtype=np.float32) / np.float32(255) for window in ways]


def to_tensor(image: NDArray[np.float32]) -> Tensor:
    """[H, W, 3] in 0 to 1 -> float32 [3, H, W] in -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) * 2 - 1


def recolour(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The same scene [H, W, 3], 0 to 1, in other colours: channels permuted, white balance and saturation changed.

    White balance 0.8 to 1.2 for each channel; distance from grey multiplied by 0.5 to 2.2; clipped to 0 to 1.
    """
    other = image[..., rng.permutation(3)] * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    grey = other.mean(axis=2, keepdims=True)
    return np.clip(grey + np.float32(rng.uniform(0.5, 2.2)) * (other - grey), 0, 1, dtype=np.float32)


def misty(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The same scene [H, W, 3], 0 to 1, in aerial perspective: what is far lies in mist, what is near does not.

    The model of `dod.data.degradations.haze`, but for what tells the mist that belongs to an image from the haze that
    is to be taken off: the nearest 30 to 70 % of the depths are clear, the airlight (brightest channel 0.5 to 0.95) is
    bluish three times out of four, else reddish (other end of the spectrum 5 to 35 % darker), beta 0.5 to 3.
    """
    near, beta, airlight = rng.uniform(0.3, 0.7), rng.uniform(0.5, 3), rng.uniform(0.5, 0.95)
    cast = rng.uniform(0.05, 0.35)
    colour = airlight * np.array([1 - cast, 1 - cast / 2, 1])[:: 1 if rng.random() < 0.75 else -1]
    far = np.clip((depth_map(image.shape[:2], rng) - near) / (1 - near), 0, 1)
    transmission = np.exp(-beta * far)[..., None]
    return (image * transmission + colour * (1 - transmission)).astype(np.float32)


class PhotographCrops(Dataset[tuple[Tensor, Tensor, int]]):
    """(degraded, clean, index) for training, float32 [3, crop, crop] in -1 to 1, from photographs held in memory.

    `index` counts in `names`: the degradations, then "clean" (an undegraded pair, a share `clean_fraction` of them).
    Crops are native, but for a third of them that come from a window up to twice as large, reduced; each is flipped
    and turned at random. Of so many `windows` the most detailed is taken: flat sky teaches little, but a model that
    never sees any takes a pale scene for haze. A share `recoloured` of them gets other colours (`recolour`), for few
    photographs hold few hues, and a share `misty` a mist that is to stay (`misty`). Each time that a degradation is in
    `more` it comes once more as often as the others. A share `soft` is captured (`dod.data.capture`): resized and
    blurred after the degradation, the clean one alike, then sensor noise and JPEG over the degraded one. What noise and
    blur are laid over is softened before.

    Sample i is a function of (seed, i): worker processes and a resumed run see the same samples. `length` only sets
    where a sequential sampler stops; samples are independent, so shuffling adds nothing. Raises DataError where there
    are no photographs, one is unreadable or smaller than `crop`, or a degradation is unknown.
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
        recoloured: float = 0.0,
        misty: float = 0.0,
        windows: int = 2,
        more: Sequence[str] = (),
        soft: float = 0.0,
    ) -> None:
        check_settings(crop, degradations, clean_fraction)
        if windows < 1:
            raise DataError(f"a crop is taken from at least 1 window, not {windows}")
        if unknown := [name for name in more if name not in degradations]:
            shown = ", ".join(degradations) or "none"
            raise DataError(f"{unknown[0]!r} cannot come more often than others: the degradations are {shown}")
        if not degradations and clean_fraction < 1:
            raise DataError("no degradation to train on: name at least one, or set the share of clean samples to 1")
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
        self.recoloured = recoloured
        self.misty = misty
        self.windows = windows
        self.more = tuple(more)
        self.soft = soft
        self._drawn = (*range(len(degradations)), *(self.names.index(name) for name in self.more))
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
        degraded, clean = self._captured(clean, self.names[index], capture, rng)
        return to_tensor(degraded), to_tensor(clean), index

    def _captured(
        self, clean: NDArray[np.float32], name: str, capture: Capture, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(degraded, clean) at the size of a crop, from a clean window at its own size."""
        size = self.crop, self.crop
        if name in SOFTENED_BEFORE:
            clean = soften(clean, capture, size)
            degraded = degrade(clean, name, rng)[0]
        else:
            degraded = clean if name == CLEAN else degrade(clean, name, rng)[0]
            degraded, clean = soften(degraded, capture, size), soften(clean, capture, size)
        return degraded if capture == SHARP else record(degraded, capture, rng), clean

    @property
    def identity(self) -> dict[str, object]:
        """All that decides a sample beside its number, for JSON: a run is resumed on the same samples alone."""
        digest = hashlib.sha256()
        for photograph in self._photographs:
            digest.update(repr(photograph.shape).encode() + photograph.tobytes())
        return {
            "degradations": self.names,
            "crop": self.crop,
            "seed": self.seed,
            "clean_fraction": self.clean_fraction,
            "recoloured": self.recoloured,
            "misty": self.misty,
            "windows": self.windows,
            "more": self.more,
            "soft": self.soft,
            "photographs": digest.hexdigest(),
        }

    def describe(self, i: int) -> str:
        """The photograph that sample i is taken from, for messages about it."""
        return self._files[np.random.default_rng((self.seed, i)).integers(len(self._files))]  # the first draw

    def _clean_crop(self, rng: np.random.Generator, scale: float) -> NDArray[np.float32]:
        """A clean window [N, N, 3], so large that resized by about `scale` it is a crop."""
        photograph = self._photographs[rng.integers(len(self._photographs))]
        reduction = rng.uniform(1, 2) if rng.random() < 1 / 3 else 1.0
        wanted = min(max(1, round(self.crop / scale)), *photograph.shape[:2])
        size = min(round(wanted * reduction), *photograph.shape[:2])
        window = max((self._window(photograph, size, rng) for _ in range(self.windows)), key=_detail)
        if size != wanted:
            reduced = Image.fromarray(window).resize((wanted, wanted), Image.Resampling.LANCZOS)
            window = np.asarray(reduced)
        crop = turned(rng, window)[0]
        if self.recoloured and rng.random() < self.recoloured:
            crop = recolour(crop, rng)
        return misty(crop, rng) if self.misty and rng.random() < self.misty else crop

    @staticmethod
    def _window(photograph: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        height, width = photograph.shape[:2]
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        return photograph[top : top + size, left : left + size]


def _detail(window: NDArray[np.uint8]) -> float:
    """Sum of absolute differences between neighbours two pixels apart, on the green channel."""
    green = window[::2, ::2, 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=0)).sum() + np.abs(np.diff(green, axis=1)).sum())
