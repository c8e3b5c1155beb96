"""Published data set trees of this field: which degraded image belongs to which clean one.

PromptIR (Potlapalli et al. 2023) defines the layout of haze, rain and noise, AdaIR (Cui et al. 2024) adds blur and low
light:

    Train/Dehaze/{synthetic,original}   part1/0025_0.8_0.04.jpg of 0025.jpg (or .png)     hazy/hazy_outside.txt
    Train/Derain/{rainy,gt}             rain-1.png of norain-1.png                        rainy/rainTrain.txt
    Train/Denoise                       clean images; noise is added when they are read   noisy/denoise.txt
    Train/Deblur/{blur,sharp}           equal names
    Train/Enhance/{low,gt}              equal names
    test/dehaze, test/derain/Rain100L, test/deblur/gopro, test/enhance/lol: {input,target}; test/denoise/bsd68

The list files on the right lie in a separate folder (PromptIR's `data_dir`). Each line is the path of a training image
relative to `Train/Dehaze`, `Train/Derain` or `Train/Denoise`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from dod.data.degradations import DEGRADATIONS
from dod.data.images import SUFFIXES, few
from dod.errors import DataError

__all__ = ["LISTS", "SETTINGS", "SPLITS", "Pair", "find_pairs"]

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "rain-haze-noise": ("haze", "rain", "noise"),
    "rain-haze-noise-blur-dark": ("haze", "rain", "noise", "blur", "low-light"),
}
"""Degradations of the paper's two all-in-one settings."""
LISTS: Mapping[str, str] = {
    "haze": "hazy/hazy_outside.txt",
    "rain": "rainy/rainTrain.txt",
    "noise": "noisy/denoise.txt",
}
"""List file of each degradation that has one, relative to the folder of lists."""


@dataclass(frozen=True)
class Pair:
    """An image file and its clean counterpart.

    Attributes:
        degradation: name of the degradation.
        degraded: the degraded image; None for noise, which is added when the image is read.
        clean: the clean image.
    """

    degradation: str
    degraded: Path | None
    clean: Path


@dataclass(frozen=True)
class TreeLayout:
    """Folders of one degradation.

    Attributes:
        folder: path relative to the root of the tree.
        degraded: folder of degraded images in `folder`; empty where there are only clean images.
        clean: folder of clean images in `folder`.
    """

    folder: str
    degraded: str = ""
    clean: str = ""


_LAYOUTS: Mapping[str, Mapping[str, TreeLayout]] = {
    "train": {
        "haze": TreeLayout("Train/Dehaze", "synthetic", "original"),
        "rain": TreeLayout("Train/Derain", "rainy", "gt"),
        "noise": TreeLayout("Train/Denoise"),
        "blur": TreeLayout("Train/Deblur", "blur", "sharp"),
        "low-light": TreeLayout("Train/Enhance", "low", "gt"),
    },
    "test": {
        "haze": TreeLayout("test/dehaze", "input", "target"),
        "rain": TreeLayout("test/derain/Rain100L", "input", "target"),
        "noise": TreeLayout("test/denoise/bsd68"),
        "blur": TreeLayout("test/deblur/gopro", "input", "target"),
        "low-light": TreeLayout("test/enhance/lol", "input", "target"),
    },
}
SPLITS: tuple[str, ...] = tuple(_LAYOUTS)
"""Names of the splits."""


def find_pairs(
    root: str | Path, degradation: str, split: str = "train", list_file: str | Path | None = None
) -> list[Pair]:
    """Find the image pairs of one degradation, by names alone: no image is opened.

    A clean image may belong to several hazy images or to none.

    Args:
        root: folder that holds `Train` and `test`.
        degradation: one of `DEGRADATIONS`.
        split: "train" or "test".
        list_file: file that lists the images to use; by default all of the tree.

    Returns:
        The pairs, sorted by name or in the order of `list_file`.

    Raises:
        DataError: unknown degradation or split, a missing or empty folder, two clean images of one name, images without
            a counterpart, or listed files that do not exist. The message has their number and the first few names.
    """
    for what, given, known in (("degradation", degradation, DEGRADATIONS), ("split", split, SPLITS)):
        if given not in known:
            raise DataError(f"unknown {what} {given!r}: it is one of {', '.join(known)}")
    layout = _LAYOUTS[split][degradation]
    base = Path(root) / layout.folder
    degraded, clean = base / layout.degraded, base / layout.clean
    for folder in dict.fromkeys((degraded, clean)):
        if not folder.is_dir():
            tree = f"{degraded} (degraded) and {clean} (clean)" if layout.degraded else f"{clean} (clean images)"
            raise DataError(f"no folder {folder}: the {split} images for {degradation} are expected in {tree}")
    chosen = _images(degraded) if list_file is None else _listed(Path(list_file), base, degraded)
    if not layout.degraded:
        return [Pair(degradation, None, path) for path in chosen]
    complete = list_file is None and degradation != "haze"
    return _match(degradation, chosen, degraded, clean, complete)


def _match(degradation: str, chosen: Sequence[Path], degraded: Path, clean: Path, complete: bool) -> list[Pair]:
    """Pair images by name. With `complete`, every clean image must have a degraded one too."""
    truths: dict[str, Path] = {}
    for path in _images(clean):
        other = truths.setdefault(_clean_key(degradation, path.relative_to(clean)), path)
        if other is not path:
            raise DataError(f"{other} and {path} are both the clean version of one image: keep one of them")
    keys = [_degraded_key(degradation, path.relative_to(degraded)) for path in chosen]
    problems = []
    if alone := [path.relative_to(degraded) for path, key in zip(chosen, keys, strict=True) if key not in truths]:
        problems.append(f"{len(alone)} of {len(chosen)} in {degraded} have no clean version in {clean}: {few(alone)}")
    if complete and (unused := [truths[key].relative_to(clean) for key in truths.keys() - set(keys)]):
        shown = few(sorted(unused))
        problems.append(
            f"{len(unused)} of {len(truths)} in {clean} have no {degradation} version in {degraded}: {shown}"
        )
    if problems:
        raise DataError(f"unpaired images: {'; '.join(problems)}. Complete or remove them")
    return [Pair(degradation, path, truths[key]) for path, key in zip(chosen, keys, strict=True)]


def _degraded_key(degradation: str, path: PurePath) -> str:
    if degradation == "haze":  # 0025_<airlight>_<beta>, in part1 to part4, all of one folder of clean images
        return path.stem.split("_")[0]
    return (path.parent / (path.stem.removeprefix("rain-") if degradation == "rain" else path.stem)).as_posix()


def _clean_key(degradation: str, path: PurePath) -> str:
    if degradation == "haze":
        return path.stem
    return (path.parent / (path.stem.removeprefix("norain-") if degradation == "rain" else path.stem)).as_posix()


def _images(folder: Path) -> list[Path]:
    """Find the image files below a folder, linked folders included, sorted. Raises DataError where there are none."""
    found: list[Path] = []
    for place, _, names in os.walk(folder, onerror=_raise, followlinks=True):
        here = Path(place)
        found += [here / name for name in names if _is_image(name)]
    if not found:
        raise DataError(f"no images in {folder}: none ends in {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _is_image(name: str) -> bool:
    """Return True for image files, except hidden ones: archives made on macOS have a `._rain-1.png` for each image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _raise(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _listed(list_file: Path, base: Path, degraded: Path) -> list[Path]:
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list file {list_file}: {error}") from error
    entries = [(number, base / line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise DataError(f"{list_file} names no image: put one path per line, relative to {base}")
    if outside := [f"line {number}: {path}" for number, path in entries if not path.is_relative_to(degraded)]:
        raise DataError(f"{list_file} names {len(outside)} images outside {degraded}: {few(outside)}")
    if missing := [f"line {number}: {path.relative_to(base)}" for number, path in entries if not path.is_file()]:
        raise DataError(f"{list_file} names {len(missing)} files that are not in {base}: {few(missing)}")
    return [path for _, path in entries]
