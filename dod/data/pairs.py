"""Training crops of image pairs on the disk, read when they are needed and all decided by (seed, index) alone."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from dod.data.dataset import CLEAN, check_settings, to_tensor, turned
from dod.data.degradations import DEGRADATIONS, degrade
from dod.data.images import UNREADABLE, few, read_rgb
from dod.data.trees import LISTS, Pair, find_pairs
from dod.errors import DataError

__all__ = ["PairedCrops", "check_pairs", "list_files"]

SIGMAS = (15.0, 25.0, 50.0)
ATTEMPTS = 20  # draws of another pair in place of an unreadable one, before a sample is given up


def list_files(folder: str | Path, degradations: Sequence[str] = tuple(LISTS)) -> dict[str, Path]:
    """The list files in a folder like PromptIR's `data_dir`, of those degradations that have one (blur has none).

    Raises DataError where one of them is missing.
    """
    files = {name: Path(folder) / LISTS[name] for name in degradations if name in LISTS}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise DataError(f"no list file {few(missing)}: without a folder of lists, every image in the tree is taken")
    return files


def check_pairs(pairs: Sequence[Pair], crop: int = 1, skip_broken: bool = False) -> tuple[list[Pair], list[Path]]:
    """(the pairs that can be read, the images that cannot), from the headers of the files alone.

    Raises DataError, with how many they are and the first few names, for images that cannot be read (unless
    `skip_broken` leaves them and their pairs out), pairs of unequal sizes, and images smaller than `crop` px.
    """
    paths = list(dict.fromkeys(path for pair in pairs for path in (pair.degraded, pair.clean) if path))
    sizes: dict[Path, tuple[int, int]] = {}
    broken: dict[Path, str] = {}
    for path in tqdm(paths, "checking", unit="image", disable=None, leave=False):
        try:
            with Image.open(path) as image:
                sizes[path] = image.size
        except UNREADABLE as error:
            broken[path] = type(error).__name__
    if broken and not skip_broken:
        names = [f"{path} ({kind})" for path, kind in broken.items()]
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
    """(degraded, clean, index) for training, float32 [3, crop, crop] in -1 to 1, as `PhotographCrops` gives them.

    root: a tree as `dod.data.trees` describes it. `index` counts in `names`: the degradations, then "clean" (an
    undegraded pair, a share `clean_fraction` of them). Each degradation is as frequent as the others, whatever the
    number of its images. Crops are native, from the same place of both images, and flipped and turned alike;
    noise has sigma 15, 25 or 50 and is added to the crop (`dod.data.degradations.noise`).
    `counts` has the number of pairs of each degradation.

    lists: a folder of list files as PromptIR's `data_dir`; without one every image counts. skip_broken: leaves
    unreadable images out (`skipped` names those found at the start) instead of refusing them; one whose header is
    whole, but whose data are not, gives way to another pair when it is drawn, with a warning.

    Sample i is a function of (seed, i) and the files: worker processes and a resumed run see the same samples.
    `length` only sets where a sequential sampler stops. Raises DataError, before the first sample, for bad settings and
    for all that `find_pairs` and `check_pairs` refuse; with a sample, for an image that cannot be decoded.
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
            raise DataError(f"no pair for {few(empty)} is left: each has an unreadable image; fetch {root} again")
        self._skip_broken = skip_broken
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        rng, index, pair = self._drawn(i)
        for left in reversed(range(ATTEMPTS)):
            try:
                degraded, clean = self._windows(index, pair, rng)
                break
            except DataError as error:
                if not (self._skip_broken and left):
                    raise
                warnings.warn(f"sample {i}: {error}; another pair takes its place", stacklevel=2)
                pair = self._another(pair, rng)
        degraded, clean = turned(rng, degraded, clean)
        if self.names[index] == "noise":
            degraded, _ = degrade(clean, "noise", rng, sigma=SIGMAS[rng.integers(len(SIGMAS))])
        return to_tensor(degraded), to_tensor(clean), index

    @property
    def identity(self) -> dict[str, object]:
        """All that decides a sample beside its number and the pixels, for JSON: a run is resumed on the same alone."""
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
        """The image that sample i is first drawn from, for messages about it."""
        pair = self.source(i)
        return str(pair.degraded or pair.clean)

    def source(self, i: int) -> Pair:
        """The pair that sample i is first drawn from, without reading it: to name the images of a bad batch."""
        return self._drawn(i)[2]

    def _drawn(self, i: int) -> tuple[np.random.Generator, int, Pair]:
        if not 0 <= i < self._length:
            raise IndexError(f"sample {i} of {self._length}")
        rng = np.random.default_rng((self.seed, i))
        task = int(rng.integers(len(self._pairs)))
        index = len(self._pairs) if rng.random() < self.clean_fraction else task
        return rng, index, self._pairs[task][rng.integers(len(self._pairs[task]))]

    def _another(self, pair: Pair, rng: np.random.Generator) -> Pair:
        pairs = self._pairs[self.names.index(pair.degradation)]
        return pairs[rng.integers(len(pairs))]

    def _windows(self, index: int, pair: Pair, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same place of both images, uint8 [crop, crop, 3]; of a clean sample or noise, the clean one twice."""
        clean = read_rgb(pair.clean)
        path = None if self.names[index] == CLEAN else pair.degraded
        degraded = clean if path is None else read_rgb(path)
        height, width = clean.shape[:2]
        if degraded.shape != clean.shape or min(height, width) < self.crop:
            raise DataError(f"{pair.degraded or pair.clean} has another size than when the run began")
        top, left = rng.integers(height - self.crop + 1), rng.integers(width - self.crop + 1)
        window = np.s_[top : top + self.crop, left : left + self.crop]
        return degraded[window], clean[window]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
