"""python -m dod_runtime INPUT OUTPUT --bundle build/mini: restores a file to a file, or a folder to a folder."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .backends import BACKENDS
from .console import Parser, progress, run_command
from .errors import BackendError, ImageError, UsageError
from .image.write import check_writable, format_of, save
from .restorer import Restoration, Restorer

NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EROFS
"""Errors of a disk that the next image would meet too."""


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python -m dod_runtime", description="Restores photographs with a bundle.")
    made.add_argument("input", type=Path, help="an image, or a folder of images (its subfolders too)")
    made.add_argument("output", type=Path, help="the image to write, or the folder (same names)")
    made.add_argument("--bundle", type=Path, default=Path("build/mini"), help="the bundle (default: %(default)s)")
    made.add_argument("--condition", default="auto", help="auto, or a degradation that the bundle knows")
    made.add_argument("--backend", default="auto", help=f"auto, onnxruntime, or one of {', '.join(BACKENDS)}")
    made.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    made.add_argument("--batch-size", type=int, default=1, help="images of one size run together (default: 1)")
    made.add_argument(
        "--tile-size", type=int, help="longest side in px run whole, larger in tiles (default: the bundle's)"
    )
    made.add_argument(
        "--no-bypass",
        dest="bypass",
        action="store_false",
        help="restore every image with the model, those too that look clean or only blurred",
    )
    made.add_argument("--device", type=int, default=0, help="the index of the GPU (default: 0)")
    made.add_argument("--num-threads", type=int, help="threads of the CPU (default: all cores)")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command: 0 where all images were restored, 1 where some of a folder were not."""
    arguments = parser().parse_args(argv)
    pairs = plan(arguments.input, arguments.output)
    warnings.showwarning = _show_warning
    options = {name: getattr(arguments, name) for name in ("device", "precision", "num_threads", "tile_size", "bypass")}
    with Restorer(arguments.bundle, arguments.backend, **options) as restorer:
        restorer.check_condition(arguments.condition)
        print(f"{restorer.backend}: {restorer.description}; {restorer.reason}")
        if arguments.input.is_dir():
            return _folder(restorer, pairs, arguments.condition, arguments.batch_size, arguments.verbose)
        source, destination = pairs[0]
        result = restorer.restore(source, arguments.condition, details=True)
        _write(result, destination)
        print(_line(destination, result) if arguments.verbose else destination)
        return 0


def plan(source: Path, destination: Path) -> list[tuple[Path, Path]]:
    """What is read and where it goes: one file, or every image of a folder by its extension.

    Raises UsageError and ImageError before anything is written.
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
    if source.resolve() in destination.resolve().parents:  # what an earlier run restored is not restored again
        names = [path for path in names if destination.resolve() not in path.resolve().parents]
    pairs = [(path, destination / path.relative_to(source)) for path in names]
    if not pairs:
        raise UsageError(f"no images in {source}")
    sources = {path.resolve() for path, _ in pairs}
    for _, path in pairs:
        if path.resolve() in sources:
            raise UsageError(f"OUTPUT {destination} would overwrite {path}, which is to be restored: choose another")
    return pairs


def _folder(restorer: Restorer, pairs: list[tuple[Path, Path]], condition: str, batch_size: int, verbose: bool) -> int:
    """Restores all pairs, whatever happens to single ones, and prints a summary."""
    sources = (source for source, _ in pairs)
    results = restorer.restore_many(sources, condition, batch_size, return_errors=True, details=True)
    failed: list[tuple[Path, Exception]] = []
    restored = passed = 0
    try:
        for (source, destination), result in progress(zip(pairs, results, strict=True), len(pairs), "restoring"):
            try:
                _write(result, destination)
                restored += 1
                passed += result.bypass_share > 0.5
                if verbose:
                    print(_line(destination, result))
            except (ImageError, OSError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
                failed.append((source, error))
    finally:  # what was done before something ended it is said all the same
        print(f"{restored} of {len(pairs)} images restored")
        if passed and condition == "auto":
            print(
                f"{passed} of them look clean or only blurred and were sharpened only (--no-bypass restores them too)"
            )
        for source, error in failed:
            print(f"failed: {source}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _write(result: Restoration | ImageError, destination: Path) -> None:
    if isinstance(result, ImageError):
        raise result
    if not isinstance(result.image, Image.Image):
        raise BackendError(f"a restored file is an image, not {type(result.image).__name__}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    save(result.image, destination)


def _line(destination: Path, result: Restoration) -> str:
    return f"{destination}: bypass share {result.bypass_share:.2f}"


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def run() -> int:
    """The entry point of the installed command `dod-restore`."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
