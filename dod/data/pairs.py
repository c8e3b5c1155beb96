"""Training crops of image pairs on disk, read on demand. Each sample is a function of (seed, index) and the files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dod.data.augmentations import random_orientation
from dod.data.dataset import CLEAN, check_settings, to_tensor
from dod.data.degradations import DEGRADATIONS, degrade
from dod.data.images import UNREADABLE, Pixels, few, read_rgb
from dod.data.trees import LISTS, Pair, find_pairs
from dod.errors import DataError
from dod_runtime.console import progress

__all__ = ["PairedCrops", "check_pairs", "list_files"]

SIGMAS = (15.0, 25.0, 50.0)
"""Standard deviations of the noise in uint8 levels."""
ATTEMPTS = 20
"""Pairs that are tried for a sample before an unreadable image is an error."""


def list_files(folder: str | Path, degradations: Sequence[str] = tuple(LISTS)) -> dict[str, Path]:
    """Return the list files in a folder with the layout of PromptIR's `data_dir`.

    Args:
        folder: the folder.
        degradations: degradations to return lists of; blur and low light have none.

    Returns:
        Paths by degradation.

    Raises:
        DataError: a list file is missing.
    """
    files = {name: Path(folder) / LISTS[name] for name in degradations if name in LISTS}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise DataError(
            f"no list file {few(missing)}: add it, or give no folder of lists to use every image of the tree"
        )
    return files


def check_pairs(pairs: Sequence[Pair], crop: int = 1, skip_broken: bool = False) -> tuple[list[Pair], list[Path]]:
    """Check image pairs by the headers of their files.

    Args:
        pairs: the pairs.
        crop: minimum width and height in px.
        skip_broken: leave out unreadable images and their pairs instead of raising.

    Returns:
        The readable pairs, and the unreadable images.

    Raises:
        DataError: unreadable images (unless skipped), pairs of unequal sizes, or images that are too small. The message
            has their number and the first few names.
    """
    paths = list(dict.fromkeys(path for pair in pairs for path in (pair.degraded, pair.clean) if path))
    sizes: dict[Path, tuple[int, int]] = {}
    broken: dict[Path, str] = {}
    for path in progress(paths, label="checking images"):
        try:
            with Image.open(path) as image:
                sizes[path] = image.size
        except UNREADABLE as error:
            broken[path] = type(error).__name__
    if broken and not skip_broken:
        names = [f"{path} ({error})" for path, error in broken.items()]
        raise DataError(
            f"{len(names)} of {len(paths)} images cannot be read: {few(names)}; remove them or use --skip-broken"
        )
    good = [pair for pair in pairs if not {pair.degraded, pair.clean} & broken.keys()]
    if unequal := [
        f"{pair.degraded} is {_size(sizes[pair.degraded])}, {pair.clean} is {_size(sizes[pair.clean])}"
        for pair in good
        if pair.degraded and sizes[pair.degraded] != sizes[pair.clean]
    ]:
        raise DataError(f"{len(unequal)} of {len(good)} pairs differ in size: {few(unequal)}")
    if small := [
        f"{pair.degraded or pair.clean} is {_size(sizes[pair.clean])}" for pair in good if min(sizes[pair.clean]) < crop
    ]:
        raise DataError(
            f"{len(small)} of {len(good)} images are smaller than a crop of {crop} px: {few(small)}; "
            "remove them or train on smaller crops"
        )
    return good, list(broken)


class PairedCrops(Dataset[tuple[Tensor, Tensor, int]]):
    """Training samples (degraded, clean, index) from image pairs: float32 [3, crop, crop] in -1 to 1.

    `index` counts in `names`: the degradations, then "clean". All degradations are equally frequent, whatever the
    number of their images (`counts`). Crops have native resolution, come from the same place of both images, and are
    rotated and mirrored alike. Noise has sigma 15, 25 or 50 and is added to the crop. Sample i is a function of (seed,
    i) and the files, so worker processes and resumed runs see the same samples.

    Args:
        root: a data set tree; see `dod.data.trees`.
        crop: side of the crops in px.
        seed: seed of all samples.
        degradations: degradations to read.
        clean_fraction: fraction of samples that are not degraded.
        length: number of samples; it only sets where a sequential sampler stops.
        lists: folder of list files as PromptIR's `data_dir`; by default every image is used.
        skip_broken: leave out unreadable images (`skipped`) instead of raising. An image whose header is readable and
            whose data are not is replaced by another pair when it is drawn, with a warning.

    Raises:
        DataError: bad settings, or anything that `find_pairs` and `check_pairs` refuse. A sample whose image cannot be
            decoded raises it when it is read.
    """

    def __init__(
        self,
        root: str | Path,
        crop: int,
        seed: int,
        degradations: Sequence[str] = DEGRADATIONS,
        clean_fraction: float = 0.0,
        length: int = 1 << 40,
        *,
        lists: str | Path | None = None,
        skip_broken: bool = False,
    ) -> None:
        check_settings(crop, degradations, clean_fraction)
        if not degradations:
            raise DataError("no degradation to read pairs of: name at least one")
        files: Mapping[str, Path] = {} if lists is None else list_files(lists, degradations)
        found = [pair for name in degradations for pair in find_pairs(root, name, list_file=files.get(name))]
        good, self.skipped = check_pairs(found, crop, skip_broken)
        self.names = (*degradations, CLEAN)
        self.crop = crop
        self.seed = seed
        self.clean_fraction = clean_fraction
        self._pairs = [[pair for pair in good if pair.degradation == name] for name in degradations]
        self.counts = {name: len(pairs) for name, pairs in zip(degradations, self._pairs, strict=True)}
        if empty := [name for name, count in self.counts.items() if not count]:
            raise DataError(f"no pair of {few(empty)} is readable: download {root} again")
        self._skip_broken = skip_broken
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        rng, index, pair = self._draw(i)
        for left in reversed(range(ATTEMPTS)):
            try:
                degraded, clean = self._windows(index, pair, rng)
                break
            except DataError as error:
                if not (self._skip_broken and left):
                    raise
                warnings.warn(f"sample {i}: {error}; another pair takes its place", stacklevel=2)
                pair = self._another(pair, rng)
        degraded, clean = random_orientation(rng, degraded, clean)
        if self.names[index] == "noise":
            degraded, _ = degrade(clean, "noise", rng, sigma=SIGMAS[rng.integers(len(SIGMAS))])
        return to_tensor(degraded), to_tensor(clean), index

    @property
    def identity(self) -> dict[str, object]:
        """All but the pixels that determines the samples, as JSON values. Runs resume with the same identity only."""
        digest = hashlib.sha256()
        for pair in (pair for pairs in self._pairs for pair in pairs):
            digest.update(f"{pair.degradation} {pair.degraded and pair.degraded.name} {pair.clean.name}\n".encode())
        return {
            "degradations": self.names,
            "crop": self.crop,
            "seed": self.seed,
            "clean_fraction": self.clean_fraction,
            "pairs": digest.hexdigest(),
        }

    def describe(self, i: int) -> str:
        """Return the path of the image that a sample is first drawn from, for messages.

        Args:
            i: index of the sample.

        Returns:
            The path.
        """
        pair = self.source(i)
        return str(pair.degraded or pair.clean)

    def source(self, i: int) -> Pair:
        """Return the pair that a sample is first drawn from, without reading it.

        Args:
            i: index of the sample.

        Returns:
            The pair.
        """
        return self._draw(i)[2]

    def _draw(self, i: int) -> tuple[np.random.Generator, int, Pair]:
        if not 0 <= i < self._length:
            raise IndexError(f"sample {i} of {self._length}")
        rng = np.random.default_rng((self.seed, i))
        drawn = int(rng.integers(len(self._pairs)))
        index = len(self._pairs) if rng.random() < self.clean_fraction else drawn
        return rng, index, self._pairs[drawn][rng.integers(len(self._pairs[drawn]))]

    def _another(self, pair: Pair, rng: np.random.Generator) -> Pair:
        pairs = self._pairs[self.names.index(pair.degradation)]
        return pairs[rng.integers(len(pairs))]

    def _windows(self, index: int, pair: Pair, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Return one window of both images, uint8 [crop, crop, 3]; the clean one twice for clean samples and noise."""
        clean = read_rgb(pair.clean)
        path = None if self.names[index] == CLEAN else pair.degraded
        degraded = clean if path is None else read_rgb(path)
        height, width = clean.shape[:2]
        if degraded.shape != clean.shape or min(height, width) < self.crop:
            raise DataError(f"{pair.degraded or pair.clean} changed its size since the run began")
        top, left = rng.integers(height - self.crop + 1), rng.integers(width - self.crop + 1)
        window = np.s_[top : top + self.crop, left : left + self.crop]
        return degraded[window], clean[window]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
