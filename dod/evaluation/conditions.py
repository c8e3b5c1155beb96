"""How well the condition c distinguishes degradations: a confusion table and t-SNE (Fig. 3 of the paper).

    dod-evaluate conditions photographs/held_out
    dod-evaluate conditions photographs/held_out --checkpoint build/mine --degradations haze noise=15 noise=50
    dod-evaluate conditions --degraded degraded      # degraded/haze/*.png, degraded/rain/*.png, ...

Each image is assigned to the nearest prototype, by cosine distance of c standardized with the calibration statistics of
the checkpoint. Rows of the table are the degradations of the images, columns the prototypes. The table is printed and
written to `conditions.json` in the folder `--out`; a t-SNE plot of the same standardized c is written to
`conditions.png`. A model without prototypes gets the plot only.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dod_runtime.console import Parser, progress

from ..checkpoint import load_model
from ..data.dataset import CLEAN, to_tensor
from ..data.degradations import DEGRADATIONS, degrade, rng_for
from ..data.images import FloatImage, Pixels, centre_crop, find_images, read_rgb
from ..errors import CheckpointError, ConfigError, DataError, run_command
from ..model.dod import DOD
from ..prototypes import nearest, standardise, statistics_of
from .arguments import add_model_options
from .confusion import Classification, as_json, confusion, report
from .tsne import draw, embed, require_libraries

__all__ = ["DegradedImage", "condition_of", "degraded_images", "main", "parser", "synthetic_images"]

OUT = Path("build/conditions")
"""Default folder of the results."""
CALIBRATE = "run `dod-train calibrate`"
"""Hint for a model without prototypes."""
LEVELS = {"noise": "sigma"}
"""Degradations whose strength may be given, as in `noise=25`, and the parameter that it sets."""


class DegradedImage(NamedTuple):
    """An image and its degradation.

    Attributes:
        name: name of the photograph.
        degradation: degradation, possibly with a level (`noise=25`).
        pixels: float32 [H, W, 3] in 0 to 1.
    """

    name: str
    degradation: str
    pixels: FloatImage


def synthetic_images(
    folder: Path, degradations: Sequence[str], size: int, seed: int = 0, draws: int = 1
) -> Iterator[DegradedImage]:
    """Degrade the center of each photograph in a folder and its subfolders.

    Args:
        folder: folder of clean photographs.
        degradations: degradations, with a level (`noise=25`) or without, or "clean".
        size: maximum side of the center in px.
        seed: seed of the first draw; draw k has the seed `seed + k`.
        draws: draws of each degradation for each photograph.

    Yields:
        Degraded images.

    Raises:
        ConfigError: unknown degradation, or a level that is not a number.
        DataError: images are missing or unreadable, or two have the same name.
    """
    chosen = [(given, *_parse(given)) for given in degradations]
    for name, path in find_images(folder).items():
        clean = _center(read_rgb(path), size)
        for given, degradation, fixed in chosen:
            if degradation == CLEAN:
                yield DegradedImage(name, given, clean)
                continue
            for k in range(draws):
                degraded, _ = degrade(clean, degradation, rng_for(name, degradation, seed + k), **fixed)
                yield DegradedImage(name, given, degraded)


def degraded_images(folder: Path, size: int) -> Iterator[DegradedImage]:
    """Read the center of each image in a folder with one subfolder per degradation.

    Args:
        folder: the folder.
        size: maximum side of the center in px.

    Yields:
        Degraded images.

    Raises:
        DataError: the folder is missing or has no subfolders, or one of them has no or unreadable images.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not subfolders:
        raise DataError(f"{folder} has no subfolders: put images into one per degradation, such as {folder / 'haze'}")
    for subfolder in subfolders:
        for name, path in find_images(subfolder).items():
            yield DegradedImage(name, subfolder.name, _center(read_rgb(path), size))


@torch.no_grad()
def condition_of(model: DOD, pixels: FloatImage) -> NDArray[np.float64]:
    """Return the condition c of an image, from its native crops as at run time.

    Args:
        model: the model.
        pixels: float32 [H, W, 3] in 0 to 1.

    Returns:
        c, [C].
    """
    condition, _ = model.modulation(to_tensor(pixels)[None])
    return condition[0].double().numpy()


def parser() -> Parser:
    """Return the parser of `dod-evaluate conditions`."""
    parser = Parser(
        prog="dod-evaluate conditions",
        description="Measure how well the condition c distinguishes degradations: confusion table and t-SNE (Fig. 3).",
    )
    images = parser.add_argument_group("images", "Give either clean photographs or --degraded.")
    source = images.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "photographs", type=Path, nargs="?", help="folder of clean photographs, which are degraded synthetically"
    )
    source.add_argument(
        "--degraded", type=Path, metavar="FOLDER", help="folder of degraded images, with one subfolder per degradation"
    )
    images.add_argument(
        "--degradations",
        nargs="+",
        metavar="NAME",
        help="degradations of the photographs: haze, rain, noise, noise=25 (sigma 25), clean, ... "
        "(default: those of the model)",
    )
    images.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="PX",
        help="maximum side in px to which images are cropped (default: %(default)s)",
    )
    images.add_argument(
        "--draws",
        type=int,
        default=1,
        metavar="N",
        help="random draws of each degradation for each photograph (default: %(default)s)",
    )
    images.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the degradations and of t-SNE (default: %(default)s)"
    )
    add_model_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--no-figure",
        dest="figure",
        action="store_false",
        help="skip the t-SNE figure, which needs scikit-learn and matplotlib",
    )
    output.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="FOLDER",
        help="folder that receives conditions.json and conditions.png (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-evaluate conditions`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        CheckpointError: the checkpoint is not readable, or lacks what the table needs.
        ConfigError: unknown degradation, or a number out of range.
        DataError: images or libraries are missing.
    """
    arguments = parser().parse_args(argv)
    for option in ("size", "draws"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option} {getattr(arguments, option)}: it must be at least 1")
    if arguments.figure:
        require_libraries()
    model = load_model(arguments.checkpoint, arguments.base, arguments.ddpm)
    if not model.prototypes and not arguments.figure:
        raise CheckpointError(f"{arguments.checkpoint} has no prototypes, which the table needs: {CALIBRATE}")
    names, degradations, conditions = _measure(model, _source(arguments, model))
    statistics = _statistics(model, conditions)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if model.prototypes:
        prototypes = {name: value.numpy() for name, value in model.prototypes.items()}
        near = nearest(conditions, prototypes, statistics)
        images = zip(names, degradations, strict=True)
        found = [Classification(*image, *match) for image, match in zip(images, near, strict=True)]
        result = confusion(found, tuple(prototypes))
        print(report(result))
        if result.without_prototype:
            skipped = ", ".join(result.without_prototype)
            print(f"not conditions of this model, so without accuracy: {skipped}", file=sys.stderr)
        _write_json(arguments.out / "conditions.json", as_json(found, result, **_settings(arguments)))
    else:
        print(f"{arguments.checkpoint} has no prototypes, so only the figure is drawn: {CALIBRATE}", file=sys.stderr)
    if arguments.figure:
        points = embed(standardise(conditions, statistics), arguments.seed)
        draw(
            points, degradations, f"t-SNE of the condition c, {arguments.checkpoint}", arguments.out / "conditions.png"
        )
    return 0


def _source(arguments: Namespace, model: DOD) -> Iterator[DegradedImage]:
    if arguments.degraded:
        return degraded_images(arguments.degraded, arguments.size)
    degradations = arguments.degradations or [name for name in model.preset.conditions if name in DEGRADATIONS]
    return synthetic_images(arguments.photographs, degradations, arguments.size, arguments.seed, arguments.draws)


def _measure(model: DOD, source: Iterable[DegradedImage]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Return names, degradations and conditions [N, C] of all images."""
    names, degradations, conditions = [], [], []
    for image in progress(source, label="conditions"):
        names.append(image.name)
        degradations.append(image.degradation)
        conditions.append(condition_of(model, image.pixels))
    return names, degradations, np.stack(conditions)


def _statistics(model: DOD, conditions: NDArray[np.float64]) -> NDArray[Any]:
    """Return the statistics [1 + C, C] of the calibration or, for a model without calibration, those of the images."""
    if model.statistics is not None:
        return model.statistics.numpy()
    if model.prototypes:
        raise CheckpointError(f"the checkpoint has prototypes, but no statistics of c: {CALIBRATE}")
    return statistics_of(conditions)


def _settings(arguments: Namespace) -> dict[str, Any]:
    """Return the settings that determine the results, as JSON values."""
    source = {"degraded": str(arguments.degraded)}
    if not arguments.degraded:
        source = {"photographs": str(arguments.photographs), "seed": arguments.seed, "draws": arguments.draws}
    return {"checkpoint": str(arguments.checkpoint), **source, "size": arguments.size}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")


def _parse(given: str) -> tuple[str, dict[str, float]]:
    """Split a degradation with a level into its name and the fixed parameters."""
    name, _, level = given.partition("=")
    if name not in (*DEGRADATIONS, CLEAN) or ("=" in given and name not in LEVELS):
        raise ConfigError(f"unknown degradation {given!r}: choose {', '.join(DEGRADATIONS)}, {CLEAN}, or noise=25")
    try:
        return name, {LEVELS[name]: float(level)} if level else {}
    except ValueError:
        raise ConfigError(f"{given!r}: the level must be a number, as in noise=25") from None


def _center(pixels: Pixels, size: int) -> FloatImage:
    """Return the center of an image, at most `size` px on either side, as float32 in 0 to 1."""
    return centre_crop(pixels, size).astype(np.float32) / np.float32(255)


if __name__ == "__main__":
    sys.exit(run_command(main))
