"""The field's published data set trees: which degraded image belongs to which clean one.

PromptIR (Potlapalli et al. 2023) lays out haze, rain and noise, AdaIR (Cui et al. 2024) adds blur and low light:

    Train/Dehaze/{synthetic,original}   part1/0025_0.8_0.04.jpg of 0025.jpg (or .png)     hazy/hazy_outside.txt
    Train/Derain/{rainy,gt}             rain-1.png of norain-1.png                        rainy/rainTrain.txt
    Train/Denoise                       clean images: the noise is made on the fly      noisy/denoise.txt
    Train/Deblur/{blur,sharp}           equal names
    Train/Enhance/{low,gt}              equal names
    test/dehaze, test/derain/Rain100L, test/deblur/gopro, test/enhance/lol: {input,target}; test/denoise/bsd68

The list files on the right lie in a folder of their own (`data_dir` there) and name one training image a line,
relative to `Train/Dehaze`, `Train/Derain` and `Train/Denoise`.
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
LISTS: Mapping[str, str] = {
    "haze": "hazy/hazy_outside.txt",
    "rain": "rainy/rainTrain.txt",
    "noise": "noisy/denoise.txt",
}


@dataclass(frozen=True)
class Pair:
    """An image file and its clean counterpart; of `noise` only the clean one is on the disk."""

    degradation: str
    degraded: Path | None
    clean: Path


@dataclass(frozen=True)
class Layout:
    """Where a degradation's images are, below the root. An empty `degraded`: only clean images, in `folder`."""

    folder: str
    degraded: str = ""
    clean: str = ""


_LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    "train": {
        "haze": Layout("Train/Dehaze", "synthetic", "original"),
        "rain": Layout("Train/Derain", "rainy", "gt"),
        "noise": Layout("Train/Denoise"),
        "blur": Layout("Train/Deblur", "blur", "sharp"),
        "low-light": Layout("Train/Enhance", "low", "gt"),
    },
    "test": {
        "haze": Layout("test/dehaze", "input", "target"),
        "rain": Layout("test/derain/Rain100L", "input", "target"),
        "noise": Layout("test/denoise/bsd68"),
        "blur": Layout("test/deblur/gopro", "input", "target"),
        "low-light": Layout("test/enhance/lol", "input", "target"),
    },
}
SPLITS: tuple[str, ...] = tuple(_LAYOUTS)


def find_pairs(root: str | Path, task: str, split: str = "train", list_file: str | Path | None = None) -> list[Pair]:
    """The pairs of one degradation, in the order of the names, or in that of `list_file` where one is given.

    root: the folder that holds `Train` and `test`. task: a name of DEGRADATIONS. split: "train" or "test".
    Only names are looked at: no image is opened. A clean image may belong to many hazy ones or to none.

    Raises DataError for an unknown task or split, a missing or empty folder, two clean images of one name, images
    without a counterpart, and lines of the list that name no file, with how many they are and the first few names.
    """
    for kind, given, known in (("task", task, DEGRADATIONS), ("split", split, SPLITS)):
        if given not in known:
            raise DataError(f"unknown {kind} {given!r}: it is one of {', '.join(known)}")
    layout = _LAYOUTS[split][task]
    base = Path(root) / layout.folder
    degraded, clean = base / layout.degraded, base / layout.clean
    for folder in dict.fromkeys((degraded, clean)):
        if not folder.is_dir():
            tree = f"{degraded} (degraded) and {clean} (clean)" if layout.degraded else f"{clean} (clean images)"
            raise DataError(f"no folder {folder}: the {split} images for {task} are expected in {tree}")
    chosen = _images(degraded) if list_file is None else _listed(Path(list_file), base, degraded)
    if not layout.degraded:
        return [Pair(task, None, path) for path in chosen]
    return _matched(task, chosen, degraded, clean, complete=list_file is None and task != "haze")


def _matched(task: str, chosen: Sequence[Path], degraded: Path, clean: Path, complete: bool) -> list[Pair]:
    """complete: every clean image must have a degraded one too."""
    truths: dict[str, Path] = {}
    for path in _images(clean):
        other = truths.setdefault(_clean_key(task, path.relative_to(clean)), path)
        if other is not path:
            raise DataError(f"{other} and {path} are both the clean version of one image: keep one of them")
    keys = [_degraded_key(task, path.relative_to(degraded)) for path in chosen]
    problems = []
    if alone := [path.relative_to(degraded) for path, key in zip(chosen, keys, strict=True) if key not in truths]:
        problems.append(f"{len(alone)} of {len(chosen)} in {degraded} have no clean version in {clean}: {few(alone)}")
    if complete and (unused := [truths[key].relative_to(clean) for key in truths.keys() - set(keys)]):
        problems.append(
            f"{len(unused)} of {len(truths)} in {clean} have no {task} version in {degraded}: {few(sorted(unused))}"
        )
    if problems:
        raise DataError(f"unpaired images: {'; '.join(problems)}. Complete or remove them")
    return [Pair(task, path, truths[key]) for path, key in zip(chosen, keys, strict=True)]


def _degraded_key(task: str, path: PurePath) -> str:
    if task == "haze":  # 0025_<airlight>_<beta>, in part1 to part4, all of one folder of clean images
        return path.stem.split("_")[0]
    return (path.parent / (path.stem.removeprefix("rain-") if task == "rain" else path.stem)).as_posix()


def _clean_key(task: str, path: PurePath) -> str:
    if task == "haze":
        return path.stem
    return (path.parent / (path.stem.removeprefix("norain-") if task == "rain" else path.stem)).as_posix()


def _images(folder: Path) -> list[Path]:
    """The image files below `folder`, linked folders included, in order. Raises DataError where there are none."""
    found: list[Path] = []
    for place, _, names in os.walk(folder, onerror=_raise, followlinks=True):
        here = Path(place)
        found += [here / name for name in names if _is_image(name)]
    if not found:
        raise DataError(f"no images in {folder}: none ends in {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _is_image(name: str) -> bool:
    """Hidden files are none: archives made on a Mac carry a `._rain-1.png` beside each image."""
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
        raise DataError(f"{list_file} names no image: one a line is expected, relative to {base}")
    if outside := [f"line {number}: {path}" for number, path in entries if not path.is_relative_to(degraded)]:
        raise DataError(f"{list_file} names {len(outside)} images outside {degraded}: {few(outside)}")
    if missing := [f"line {number}: {path.relative_to(base)}" for number, path in entries if not path.is_file()]:
        raise DataError(f"{list_file} names {len(missing)} files that are not in {base}: {few(missing)}")
    return [path for _, path in entries]
