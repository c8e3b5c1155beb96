"""Restore NumPy arrays in an application: one restorer for the life of the process, arrays in and arrays out."""

import argparse
import time

import numpy as np
from PIL import Image

from dod_runtime import Restorer


def main() -> None:
    """Restore one frame as uint8, as float32 and as gray."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="docs/samples/noise.png", help="image to restore (default: %(default)s)")
    parser.add_argument("--bundle", default="build/mini", help="folder of the bundle (default: %(default)s)")
    arguments = parser.parse_args()

    with Image.open(arguments.image) as image:
        frame = np.asarray(image.convert("RGB"))  # uint8 [H, W, 3]
    with Restorer(arguments.bundle) as restorer:
        restorer.warmup("auto", size=frame.shape[:2])  # load and compile now, not at the first frame
        frames = {
            "RGB": frame,
            "RGB in [0, 1]": frame.astype(np.float32) / 255,
            "gray": frame.mean(axis=2).astype(np.uint8),
        }
        for name, array in frames.items():
            start = time.perf_counter()
            restored = restorer.restore(array)  # same dtype, shape and range as `array`
            seconds = time.perf_counter() - start
            print(f"{name}: {restored.dtype} {list(restored.shape)} in {seconds:.2f} s")


if __name__ == "__main__":
    main()
