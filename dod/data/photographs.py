"""Download and prepare the photographs that the shipped model is trained and evaluated on.

`dod-train photographs OUT` downloads the Debian packages listed in `photographs.yaml` and writes `OUT/train/*.png` and
`OUT/held_out/*.png`. The images are not part of the repository because their licenses belong to their authors. Every
PNG has its source, author and license in its text chunks.
"""

from __future__ import annotations

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

from dod.errors import DataError, run_command
from dod_runtime.console import Parser, progress

__all__ = ["SPLITS", "Photograph", "listed_photographs", "main", "parser", "prepare", "prepare_photographs"]

Split = Literal["train", "held_out"]
SPLITS: tuple[str, ...] = get_args(Split)
"""Names of the splits."""

_LIST = Path(__file__).with_name("photographs.yaml")
_TEXT_KEYS = ("Source", "Author", "Copyright", "Description")


@dataclass(frozen=True)
class Photograph:
    """An image inside a Debian package.

    Attributes:
        name: name of the prepared file, without suffix.
        package: name of the Debian package.
        file: path in the package.
        author: author of the photograph.
        licence: SPDX-like name of its license.
        split: "train" or "held_out".
    """

    name: str
    package: str
    file: str
    author: str
    licence: str
    split: Split

    def path(self, out: Path) -> Path:
        """Return the path of the prepared image.

        Args:
            out: folder that `prepare_photographs` writes to.

        Returns:
            The path of a PNG file.
        """
        return out / self.split / f"{self.name}.png"


def listed_photographs(split: str | None = None) -> list[Photograph]:
    """Return the images listed in `photographs.yaml`, in that order.

    Args:
        split: name of a split; by default both.

    Returns:
        The photographs.

    Raises:
        DataError: unknown split.
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
    """Convert an image to upright RGB and reduce it.

    The reduction averages out JPEG artifacts and sensor noise, which a restoration model must not learn as clean.

    Args:
        image: the original.
        longest: maximum length of the longer side in px. Smaller images are not enlarged.

    Returns:
        The prepared image.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def prepare_photographs(out: Path, packages_from: Path | None = None, longest: int = 1600) -> list[Path]:
    """Write every listed photograph; existing files with the same settings are kept.

    Each file is written completely or not at all.

    Args:
        out: folder that receives `train/*.png` and `held_out/*.png`.
        packages_from: folder of .deb files to use instead of `apt-get download`.
        longest: maximum length of an image's longer side in px.

    Returns:
        The paths, in the order of the list.

    Raises:
        DataError: a package cannot be downloaded or unpacked, or an image of it cannot be read.
    """
    if longest < 1:
        raise DataError(f"the longest side must be at least 1 px, not {longest}")
    photographs = listed_photographs()
    missing = [photograph for photograph in photographs if not _is_current(photograph, out, longest)]
    _remove_unlisted(out, {photograph.path(out) for photograph in photographs})

    with tempfile.TemporaryDirectory(prefix="dod-photographs-") as temporary:
        roots: dict[str, Path] = {}
        for photograph in progress(missing, label="photographs") if missing else ():
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
    """Delete files of an older list: an image whose split changed must never be in both splits."""
    for path in (path for split in SPLITS for path in (out / split).glob("*.png")):
        if path not in listed and _read_text(path).get("Source", "").startswith("Debian package "):
            path.unlink()


def _unpack(package: str, packages_from: Path | None, temporary: Path) -> Path:
    """Unpack a package below `temporary` and return the folder that stands for the root of the file system."""
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
            f"{failure}: {command[0]} is not installed. On a Debian or Ubuntu machine run `apt-get download` for "
            f"{', '.join(sorted({photograph.package for photograph in listed_photographs()}))}, copy the .deb files "
            "here and give their folder with --packages-from (dpkg is needed to unpack them)"
        )
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise DataError(
            f"{failure}: {reason}. Run `apt-get update` first, or give a folder of .deb files with --packages-from"
        )


def _write(photograph: Photograph, root: Path, out: Path, longest: int) -> None:
    source = root / photograph.file
    if not source.is_file():
        raise DataError(
            f"the package {photograph.package} of this release does not hold {photograph.file}: "
            "download the one of Debian 12 (bookworm) and give its folder with --packages-from"
        )
    try:
        with _open(source) as opened:
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


def _open(source: Path) -> Image.Image:
    """Open an image file, or the largest JPEG stream of an Enlightenment theme (.edj). Raises OSError without one."""
    if source.suffix != ".edj":
        return Image.open(source)
    data = source.read_bytes()
    images: list[Image.Image] = []
    for start in re.finditer(rb"\xff\xd8\xff", data):
        with contextlib.suppress(UnidentifiedImageError):
            images.append(Image.open(io.BytesIO(data[start.start() :]), formats=["JPEG"]))
    if not images:
        raise OSError("no JPEG image in it")
    return max(images, key=lambda image: image.width * image.height)


def parser() -> Parser:
    """Return the parser of `dod-train photographs`."""
    parser = Parser(
        prog="dod-train photographs",
        description="Download the photographs that the shipped model is trained and evaluated on, and prepare them.",
    )
    parser.add_argument("out", type=Path, help="folder that receives train/*.png and held_out/*.png")
    source = parser.add_argument_group("source and size")
    source.add_argument(
        "--packages-from",
        type=Path,
        metavar="FOLDER",
        help="folder of .deb files to unpack (default: download them with apt-get)",
    )
    source.add_argument(
        "--longest",
        type=int,
        default=1600,
        metavar="PX",
        help="maximum length of an image's longer side in px; larger images are reduced (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-train photographs`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        DataError: see `prepare_photographs`.
    """
    arguments = parser().parse_args(argv)

    paths = prepare_photographs(arguments.out, arguments.packages_from, arguments.longest)
    for split in SPLITS:
        print(f"{sum(path.parent.name == split for path in paths):3d} photographs in {arguments.out / split}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
