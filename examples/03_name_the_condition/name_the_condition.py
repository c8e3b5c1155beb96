"""Restore one image on every condition path of a bundle, and compare the results."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dod_runtime import Restorer


def main() -> None:
    """Write one image for each path and print how much each path changed the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="docs/samples/haze.png", help="image to restore (default: %(default)s)")
    parser.add_argument("--bundle", default="build/mini", help="folder of the bundle (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/conditions"), help="folder for the restored images")
    arguments = parser.parse_args()

    with Image.open(arguments.image) as image:
        degraded = np.asarray(image.convert("RGB"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Restorer(arguments.bundle) as restorer:
        for condition in restorer.conditions:  # "auto" first, then the degradations that the bundle knows
            result = restorer.restore(degraded, condition=condition, details=True)
            Image.fromarray(result.image).save(arguments.out / f"{condition}.png")
            change = np.abs(result.image.astype(float) - degraded).mean()
            print(f"{condition}: mean change {change:.1f} of 255, bypass share {result.bypass_share:.2f}")


if __name__ == "__main__":
    main()
