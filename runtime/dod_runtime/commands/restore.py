"""`dod-runtime restore INPUT OUTPUT`: restore a file to a file, or a folder to a folder."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..backends import BACKENDS
from ..condition_path import AUTO
from ..console import Parser, print_line, progress
from ..errors import BackendError, ImageError, UsageError
from ..image.write import check_writable, format_of, save
from ..restoration import Restoration, Restored
from ..restorer import Restorer

__all__ = ["main", "parser", "plan"]

log = logging.getLogger("dod_runtime")

DISK_ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EROFS
"""Error numbers of a disk that the next image would meet, too."""


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser(
        prog="dod-runtime restore",
        description="Restore an image, or all images of a folder.",
        verbose="also print the chosen backend, and the bypass share of each image",
    )
    made.add_argument("input", type=Path, help="image, or folder of images, subfolders included")
    made.add_argument("output", type=Path, help="image to write, or folder to write images of the same names to")
    model = made.add_argument_group("model")
    model.add_argument(
        "--bundle",
        type=Path,
        default=Path("build/mini"),
        metavar="FOLDER",
        help="folder of the bundle (default: %(default)s)",
    )
    model.add_argument(
        "--condition",
        default=AUTO,
        metavar="NAME",
        help="condition of the bundle that names the degradation, see dod-runtime info; with auto the model estimates "
        "it (default: %(default)s)",
    )
    model.add_argument(
        "--no-bypass",
        dest="bypass",
        action="store_false",
        help="restore every image with the model (default: images that auto takes for clean or only blurred, and "
        "all images of a condition with bypass weight 1, such as blur of mini, are only sharpened by a linear filter)",
    )
    backend = made.add_argument_group("backend")
    backend.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help=f"one of {', '.join(BACKENDS)}; auto takes the first of them, in this order, that can run here; "
        "onnxruntime stands for CUDA if it can run, else the CPU (default: %(default)s)",
    )
    backend.add_argument(
        "--precision",
        default="auto",
        metavar="NAME",
        help="precision to compute in: auto, fp32, fp16 or bf16, as the bundle offers (default: %(default)s)",
    )
    backend.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default: %(default)s)")
    backend.add_argument("--num-threads", type=int, metavar="N", help="number of CPU threads (default: all cores)")
    sizes = made.add_argument_group("sizes")
    sizes.add_argument(
        "--tile-size",
        type=int,
        metavar="PX",
        help="longest side that is restored whole, in px; larger images are restored in overlapping tiles, with less "
        "memory: a multiple of the bundle's size multiple, between its minimum and maximum size (default: the maximum)",
    )
    sizes.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="maximum number of consecutive images of one size that run together, capped at the bundle's largest batch "
        "(default: %(default)s)",
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        0 where all images were restored, 1 where some images of a folder were not.
    """
    arguments = parser().parse_args(argv)
    pairs = plan(arguments.input, arguments.output)
    options = {name: getattr(arguments, name) for name in ("device", "precision", "num_threads", "tile_size", "bypass")}
    with warnings.catch_warnings(), Restorer(arguments.bundle, arguments.backend, **options) as restorer:
        warnings.showwarning = _log_warning
        restorer.check_condition(arguments.condition)
        if arguments.input.is_dir():
            return _restore_folder(restorer, pairs, arguments)
        source, destination = pairs[0]
        result = restorer.restore(source, arguments.condition, details=True)
        _write(result, destination)
        if not arguments.quiet:
            details = f", bypass share {result.bypass_share:.2f}" if arguments.verbose else ""
            print(f"{destination}: restored with {restorer.info}{details}")
        return 0


def plan(source: Path, destination: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of files to read and to write, before anything is written.

    Args:
        source: an image, or a folder; its images are recognized by their extensions.
        destination: the image to write, or a folder.

    Raises:
        ImageError: the source does not exist, or the destination cannot be written.
        UsageError: source and destination do not match, or the source has no images.
    """
    if not source.exists():
        raise ImageError(f"no such file: {source}")
    if destination.exists() and source.samefile(destination):
        raise UsageError(f"INPUT and OUTPUT are both {source}: choose another OUTPUT")
    if not source.is_dir():
        if destination.is_dir():
            raise UsageError(f"INPUT is a file and OUTPUT {destination} a folder: name the file to write")
        check_writable(destination)
        return [(source, destination)]
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"INPUT is a folder and OUTPUT {destination} a file: name a folder")
    names = [path for path in sorted(source.rglob("*")) if path.is_file() and format_of(path)]
    if source.resolve() in destination.resolve().parents:  # skip the images that an earlier run restored
        names = [path for path in names if destination.resolve() not in path.resolve().parents]
    pairs = [(path, destination / path.relative_to(source)) for path in names]
    if not pairs:
        raise UsageError(f"no images in {source}")
    sources = {path.resolve() for path, _ in pairs}
    for _, path in pairs:
        if path.resolve() in sources:
            raise UsageError(f"OUTPUT {destination} would overwrite {path}, an image of INPUT: choose another OUTPUT")
    return pairs


def _restore_folder(restorer: Restorer, pairs: list[tuple[Path, Path]], arguments: Namespace) -> int:
    """Restore all pairs, print a summary, and go on after errors of single images."""
    sources = (source for source, _ in pairs)
    condition, batch_size = arguments.condition, arguments.batch_size
    results = restorer.restore_many(sources, condition, batch_size, return_errors=True, details=True)
    failed: list[tuple[Path, Exception]] = []
    restored = bypassed = 0
    try:
        for (source, destination), result in progress(zip(pairs, results, strict=True), len(pairs), "restore"):
            try:
                _write(result, destination)
                restored += 1
                bypassed += result.bypass_share > 0.5
                if arguments.verbose and not arguments.quiet:
                    print_line(f"{destination}: bypass share {result.bypass_share:.2f}")
            except (ImageError, OSError) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                failed.append((source, error))
    finally:  # an interrupted run has a summary, too
        if not arguments.quiet:
            print_line(f"{restored} of {len(pairs)} images restored with {restorer.info}")
            if bypassed and condition == AUTO:
                print_line(f"{bypassed} of them look clean or only blurred: sharpened only (--no-bypass restores them)")
        for source, error in failed:
            print(f"failed: {source}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _write(result: Restoration[Restored] | ImageError, destination: Path) -> None:
    if isinstance(result, ImageError):
        raise result
    if not isinstance(result.image, Image.Image):
        raise BackendError(f"a restored file is an image, not {type(result.image).__name__}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        save(result.image, destination)
    except OSError as error:
        error.filename = error.filename or str(destination)  # errors of Pillow name no file
        raise


def _log_warning(message: Warning | str, *_: object, **__: object) -> None:
    log.warning("%s", " ".join(str(message).split()))
