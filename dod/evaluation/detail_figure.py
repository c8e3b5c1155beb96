"""The paper's Fig. 5 for any model: enlarged crops with and without detail enhancement.

`python -m dod.evaluation.detail_figure PHOTOGRAPHS --out detail.png` degrades each photograph, restores it twice, and
shows the same most detailed window of all four: degraded, restored without DEM, with DEM, clean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..checkpoint import load_model
from ..data.dataset import load_photographs, to_tensor
from ..data.degradations import degrade, rng_for
from ..data.images import centre_crop
from ..errors import ConfigError, DataError, run_command
from ..model.dod import DOD
from .contact_sheet import Entry, contact_sheet
from .metrics import psnr

Pixels = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dod.evaluation.detail_figure", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("photographs", type=Path, help="folder of clean photographs")
    parser.add_argument("--model", default="mini", help="preset or checkpoint; default %(default)s")
    parser.add_argument("--size", type=int, default=384, help="of the restored images, in px; default %(default)s")
    parser.add_argument("--window", type=int, default=96, help="of the crops shown, in px; default %(default)s")
    parser.add_argument("--zoom", type=int, default=2, help="default %(default)s")
    parser.add_argument("--limit", type=int, default=5, help="photographs shown; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the degradations; default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/detail.png"), help="default %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    model = load_model(arguments.model)
    if not len(model.decoder.detail):
        raise ConfigError(f"{arguments.model} has no detail modules to show")
    if arguments.size % model.preset.size_multiple or not 0 < arguments.window <= arguments.size:
        raise ConfigError(
            f"--size {arguments.size}, --window {arguments.window}: the first must be a multiple of "
            f"{model.preset.size_multiple}, the second at most as large"
        )
    if arguments.limit < 1 or arguments.zoom < 1:
        raise ConfigError(f"--limit {arguments.limit}, --zoom {arguments.zoom}: both must be at least 1")
    entries = []
    conditions = model.preset.conditions
    for i, (name, pixels) in enumerate(list(load_photographs(arguments.photographs).items())[: arguments.limit]):
        if min(pixels.shape[:2]) < arguments.size:
            raise DataError(f"{arguments.photographs / name} is smaller than --size {arguments.size}")
        degradation = conditions[i % len(conditions)]
        images = four(model, name, pixels, degradation, arguments.size, arguments.seed)
        without, with_dem = (f"{psnr(image, images[3]):.1f}" for image in images[1:3])
        window = most_detailed(images[3], arguments.window)
        crops = [enlarged(image[window], arguments.zoom) for image in images]
        caption = f"{degradation}: input, without DEM {without} dB, with DEM {with_dem} dB, truth ({Path(name).stem})"
        entries.append(Entry(caption, crops))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(entries, per_line=1, side=arguments.window * arguments.zoom).save(arguments.out)
    print(arguments.out)
    return 0


@torch.no_grad()
def four(model: DOD, name: str, pixels: Pixels, degradation: str, size: int, seed: int) -> list[Pixels]:
    """The middle of a photograph, uint8 [size, size, 3]: degraded, restored without and with DEM, clean."""
    clean = centre_crop(pixels, size)
    unit = clean.astype(np.float32) / np.float32(255)
    degraded, _ = degrade(unit, degradation, rng_for(name, degradation, seed))
    image = to_tensor(degraded)[None]
    _, modulation = model.modulation(image)
    latent, skips = model.encode(image, modulation)
    restored = model.unet(latent, modulation)
    outputs = [model.decoder(restored), model.decoder(restored, skips)]
    restorations = [
        np.rint((output[0].clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8) for output in outputs
    ]
    return [np.rint(degraded * 255).astype(np.uint8), *restorations, clean]


def most_detailed(image: Pixels, window: int) -> tuple[slice, slice]:
    """The window of an image with the largest sum of absolute differences between neighbours."""
    grey = image.astype(np.float32).mean(axis=2)
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(change.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = min(window, *change.shape)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(top), int(top) + window), slice(int(left), int(left) + window)


def enlarged(image: Pixels, zoom: int) -> Pixels:
    """Every pixel `zoom` times as large, without smoothing."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.NEAREST))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
