"""Fig. 5 of the paper for any model: enlarged crops with and without detail enhancement (DEM).

`dod-evaluate detail PHOTOGRAPHS --out detail.png` degrades each photograph, restores it twice, and draws the same
window of four images, the most detailed one: degraded, restored without and with DEM, clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dod_runtime.console import Parser

from ..checkpoint import load_model
from ..data.dataset import load_photographs, to_tensor
from ..data.degradations import degrade, rng_for
from ..data.images import Pixels, centre_crop
from ..errors import ConfigError, DataError, run_command
from ..model.dod import DOD
from .arguments import add_model_options
from .contact_sheet import SheetEntry, contact_sheet
from .metrics import psnr

__all__ = ["enlarge", "main", "most_detailed", "parser", "with_and_without_detail"]


def parser() -> Parser:
    """Return the parser of `dod-evaluate detail`."""
    parser = Parser(
        prog="dod-evaluate detail",
        description="Draw enlarged crops restored with and without detail enhancement (Fig. 5 of the paper).",
    )
    parser.add_argument("photographs", type=Path, help="folder of clean photographs, which are degraded synthetically")
    add_model_options(parser)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--size", type=int, default=384, metavar="PX", help="side in px of the restored images (default: %(default)s)"
    )
    images.add_argument(
        "--window", type=int, default=96, metavar="PX", help="side in px of the crops shown (default: %(default)s)"
    )
    images.add_argument(
        "--zoom", type=int, default=2, metavar="N", help="factor by which the crops are enlarged (default: %(default)s)"
    )
    images.add_argument(
        "--limit", type=int, default=5, metavar="N", help="maximum number of photographs shown (default: %(default)s)"
    )
    images.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the degradations (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        default=Path("build/detail.png"),
        metavar="FILE",
        help="image file to write (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-evaluate detail`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        ConfigError: the model has no detail modules, or a number is out of range.
        DataError: photographs are missing, unreadable or too small.
    """
    arguments = parser().parse_args(argv)
    model = load_model(arguments.checkpoint, arguments.base, arguments.ddpm)
    if not len(model.decoder.detail):
        raise ConfigError(f"{arguments.checkpoint} has no detail modules: choose another checkpoint")
    if arguments.size % model.preset.size_multiple or not 0 < arguments.window <= arguments.size:
        raise ConfigError(
            f"--size {arguments.size} --window {arguments.window}: the size must be a multiple of "
            f"{model.preset.size_multiple}, the window at most as large"
        )
    if arguments.limit < 1 or arguments.zoom < 1:
        raise ConfigError(f"--limit {arguments.limit} --zoom {arguments.zoom}: both must be at least 1")
    entries = []
    conditions = model.preset.conditions
    for i, (name, pixels) in enumerate(list(load_photographs(arguments.photographs).items())[: arguments.limit]):
        if min(pixels.shape[:2]) < arguments.size:
            raise DataError(f"{arguments.photographs / name} is smaller than --size {arguments.size}")
        degradation = conditions[i % len(conditions)]
        images = with_and_without_detail(model, name, pixels, degradation, arguments.size, arguments.seed)
        without, with_dem = (f"{psnr(image, images[3]):.1f}" for image in images[1:3])
        window = most_detailed(images[3], arguments.window)
        crops = [enlarge(image[window], arguments.zoom) for image in images]
        caption = f"{degradation}: input, without DEM {without} dB, with DEM {with_dem} dB, truth ({Path(name).stem})"
        entries.append(SheetEntry(caption, crops))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(entries, per_line=1, side=arguments.window * arguments.zoom).save(arguments.out)
    print(arguments.out)
    return 0


@torch.no_grad()
def with_and_without_detail(
    model: DOD, name: str, pixels: Pixels, degradation: str, size: int, seed: int
) -> list[Pixels]:
    """Degrade the center of a photograph and restore it without and with DEM.

    Args:
        model: the model.
        name: name of the photograph, which the degradation depends on.
        pixels: uint8 [H, W, 3].
        degradation: name of the degradation.
        size: side of the center in px.
        seed: seed of the degradation.

    Returns:
        uint8 [size, size, 3] each: degraded, restored without DEM, restored with DEM, clean.
    """
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
    """Find the window with the largest sum of absolute differences between neighboring pixels.

    Args:
        image: uint8 [H, W, 3].
        window: side of the window in px.

    Returns:
        Slices of rows and columns.
    """
    gray = image.astype(np.float32).mean(axis=2)
    change = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    total = np.pad(change.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = min(window, *change.shape)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(top), int(top) + window), slice(int(left), int(left) + window)


def enlarge(image: Pixels, zoom: int) -> Pixels:
    """Enlarge an image by repeating pixels.

    Args:
        image: uint8 [H, W, 3].
        zoom: integer factor.

    Returns:
        uint8 [zoom H, zoom W, 3].
    """
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.NEAREST))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
