"""Restore NumPy arrays in an application: one restorer for the life of the process, arrays in and arrays out."""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dod_runtime import Restorer


def main() -> None:
    """Restore one frame as uint8, as float32 and as gray."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "image",
        type=Path,
        nargs="?",
        default=Path("docs/samples/noise.png"),
        help="image to restore (default: docs/samples/noise.png)",
    )
    parser.add_argument(
        "--bundle", type=Path, default=Path("build/mini"), help="folder of the bundle (default: build/mini)"
    )
    arguments = parser.parse_args()

    with Image.open(arguments.image) as image:
        frame = np.asarray(image.convert("RGB"))  # uint8 [H, W, 3]
    with Restorer(arguments.bundle) as restorer:
        restorer.warmup("auto", size=frame.shape[:2])  # load and compile now, not at the first frame
        frames = {
            "uint8 RGB": frame,
            "float32 RGB in [0, 1]": frame.astype(np.float32) / 255,
            "uint8 gray": frame.mean(axis=2).astype(np.uint8),
        }
        for name, array in frames.items():
            start = time.perf_counter()
            restored = restorer.restore(array)
            seconds = time.perf_counter() - start
            assert restored.dtype == array.dtype and restored.shape == array.shape
            print(f"{name}: {restored.dtype} {list(restored.shape)} in {seconds:.2f} s")


if __name__ == "__main__":
    main()
