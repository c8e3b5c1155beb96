"""Restore all images of a folder in batches, and report files that cannot be read."""

import argparse
from pathlib import Path

from dod_runtime import ImageError, Restorer

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def main() -> int:
    """Restore the images; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("out", type=Path, help="another folder, for restored images of the same names")
    parser.add_argument("--bundle", default="build/mini", help="folder of the bundle (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.out.resolve() == arguments.images.resolve():
        parser.error("choose another folder for restored images: this one would be overwritten")

    paths = sorted(path for path in arguments.images.iterdir() if path.suffix.lower() in SUFFIXES)
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with Restorer(arguments.bundle) as restorer:
        print(f"backend: {restorer.info}")
        # Images of one size run together. With return_errors, a broken file does not end the loop.
        results = restorer.restore_many(paths, batch_size=4, return_errors=True)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, ImageError):
                failed += 1
                print(f"failed: {path}: {result}")
                continue
            result.save(arguments.out / path.name)  # Pillow takes the format from the suffix
            print(f"restored: {path.name}, {result.width} x {result.height}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
