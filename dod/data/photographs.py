"""Fetch and prepare the photographs that the shipped model is trained on and judged by.

`python -m dod.data.photographs OUT` downloads the Debian packages listed in `photographs.yaml` and writes
`OUT/train/*.png` and `OUT/held_out/*.png`. Nothing of them is committed: their licences stay with their authors, and
every PNG carries its source, author and licence in its text chunks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from dod.errors import DataError, run_command

__all__ = ["Photograph", "SPLITS", "listed_photographs", "prepare", "prepare_photographs"]

Split = Literal["train", "held_out"]
SPLITS: tuple[str, ...] = get_args(Split)

_LIST = Path(__file__).with_name("photographs.yaml")
_TEXT_KEYS = ("Source", "Author", "Copyright", "Description")


@dataclass(frozen=True)
class Photograph:
    """An image inside a Debian package. `file` is its path below the package's root."""

    name: str
    package: str
    file: str
    author: str
    licence: str
    split: Split

    def path(self, out: Path) -> Path:
        """Where `prepare` writes it below the folder `out`."""
        return out / self.split / f"{self.name}.png"


def listed_photographs(split: str | None = None) -> list[Photograph]:
    """The images of `photographs.yaml`, of one split or of both, in the order of the list.

    Raises DataError for an unknown split.
    """
    if split not in (None, *SPLITS):
        raise DataError(f"unknown split {split!r}: it is one of {', '.join(SPLITS)}")
    photographs = [
        Photograph(**{**image, "file": f"{group['folder']}/{image['file']}", "package": group["package"]})
        for group in yaml.safe_load(_LIST.read_text(encoding="utf-8"))
        for image in group["images"]
    ]
    return [photograph for photograph in photographs if split in (None, photograph.split)]


def prepare(image: Image.Image, longest: int) -> Image.Image:
    """RGB, upright, its longest side reduced (never enlarged) to `longest` px with Lanczos.

    The reduction also averages out JPEG artefacts and sensor noise, which a restoration model must not learn as clean.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def prepare_photographs(out: Path, packages_from: Path | None = None, longest: int = 1600) -> list[Path]:
    """Write every listed photograph below `out`; images already there with the same settings are kept.

    `packages_from`: folder of downloaded .deb files, used in place of `apt-get download`. Returns the paths, in the
    order of the list. Each file is whole or absent. Raises DataError where a package or an image cannot be had.
    """
    if longest < 1:
        raise DataError(f"the longest side must be at least 1 px, not {longest}")
    photographs = listed_photographs()
    missing = [photograph for photograph in photographs if not _is_current(photograph, out, longest)]
    _remove_unlisted(out, {photograph.path(out) for photograph in photographs})

    with tempfile.TemporaryDirectory(prefix="dod-photographs-") as temporary:
        roots: dict[str, Path] = {}
        for photograph in (bar := tqdm(missing, desc="photographs", unit="image", disable=not missing)):
            bar.set_postfix_str(photograph.name)
            if photograph.package not in roots:
                roots[photograph.package] = _unpack(photograph.package, packages_from, Path(temporary))
            _write(photograph, roots[photograph.package], out, longest)
    return [photograph.path(out) for photograph in photographs]


def _text(photograph: Photograph, longest: int) -> dict[str, str]:
    source = f"Debian package {photograph.package}, {photograph.file}"
    values = (source, photograph.author, photograph.licence, f"longest side at most {longest} px")
    return dict(zip(_TEXT_KEYS, values, strict=True))


def _read_text(path: Path) -> dict[str, str]:
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {})
            return {key: text[key] for key in _TEXT_KEYS if key in text}
    except OSError:
        return {}


def _is_current(photograph: Photograph, out: Path, longest: int) -> bool:
    return _read_text(photograph.path(out)) == _text(photograph, longest)


def _remove_unlisted(out: Path, listed: set[Path]) -> None:
    """Delete what an older list wrote: an image that changed its split must never be in both."""
    for path in (path for split in SPLITS for path in (out / split).glob("*.png")):
        if path not in listed and _read_text(path).get("Source", "").startswith("Debian package "):
            path.unlink()


def _unpack(package: str, packages_from: Path | None, temporary: Path) -> Path:
    """Unpack `package` below `temporary` and return the folder that stands for its root."""
    deb = _download(package, temporary) if packages_from is None else _find_deb(package, packages_from)
    root = temporary / package
    _run(["dpkg", "-x", str(deb.resolve()), str(root)], temporary, f"cannot unpack {deb.name}")
    return root


def _download(package: str, folder: Path) -> Path:
    _run(["apt-get", "download", package], folder, f"cannot download the Debian package {package}")
    return _find_deb(package, folder)


def _find_deb(package: str, folder: Path) -> Path:
    debs = sorted(folder.glob(f"{package}_*.deb"))
    if not debs:
        raise DataError(
            f"no {package}_*.deb in {folder}: download it from https://packages.debian.org/bookworm/{package}"
        )
    return debs[-1]


def _run(command: list[str], folder: Path, failure: str) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(
            f"{failure}: {command[0]} is not on this machine. On a Debian or Ubuntu machine run `apt-get download` for "
            f"{', '.join(sorted({photograph.package for photograph in listed_photographs()}))}, copy the .deb files "
            "here and pass their folder with --packages-from (dpkg is needed to unpack them)"
        )
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise DataError(
            f"{failure}: {reason}. Run `apt-get update` first, or pass downloaded .deb files with --packages-from"
        )


def _write(photograph: Photograph, root: Path, out: Path, longest: int) -> None:
    source = root / photograph.file
    if not source.is_file():
        raise DataError(
            f"the package {photograph.package} of this release does not hold {photograph.file}: "
            "take the package of Debian 12 (bookworm) and pass its folder with --packages-from"
        )
    try:
        with _opened(source) as opened:
            image = prepare(opened, longest)
    except OSError as error:
        raise DataError(f"cannot read {photograph.file} of {photograph.package}: {error}") from error

    text = PngImagePlugin.PngInfo()
    for key, value in _text(photograph, longest).items():
        text.add_itxt(key, value)
    target = photograph.path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        image.save(partial, format="PNG", pnginfo=text)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _opened(source: Path) -> Image.Image:
    """An image file; of an Enlightenment theme (.edj) the largest JPEG stream in it. Raises OSError where none is."""
    if source.suffix != ".edj":
        return Image.open(source)
    held = source.read_bytes()
    images: list[Image.Image] = []
    for start in re.finditer(rb"\xff\xd8\xff", held):
        with contextlib.suppress(UnidentifiedImageError):
            images.append(Image.open(io.BytesIO(held[start.start() :]), formats=["JPEG"]))
    if not images:
        raise OSError("no JPEG image in it")
    return max(images, key=lambda image: image.width * image.height)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dod.data.photographs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder that gets train/*.png and held_out/*.png")
    parser.add_argument("--packages-from", type=Path, metavar="FOLDER", help="already downloaded .deb files")
    parser.add_argument("--longest", type=int, default=1600, help="longest side in px (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    paths = prepare_photographs(arguments.out, arguments.packages_from, arguments.longest)
    for split in SPLITS:
        print(f"{sum(path.parent.name == split for path in paths):3d} photographs in {arguments.out / split}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
