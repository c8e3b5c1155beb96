"""How well the condition c tells degradations apart: a confusion table and the paper's Fig. 3.

    python -m dod.evaluation.conditions photographs/held_out
    python -m dod.evaluation.conditions photographs/held_out --model build/mine --degradations haze noise=15 noise=50
    python -m dod.evaluation.conditions --degraded degraded      # degraded/haze/*.png, degraded/rain/*.png, ...

Clean photographs are degraded here; those of `--degraded` already are. Each image goes to the nearest prototype, by
cosine distance on c standardised with the calibration statistics that the checkpoint keeps. The table (its rows are
what the images are, its columns what they are taken for) is printed and written to `conditions.json` in the folder
`--out`, t-SNE of the same standardised c to `conditions.png`. A model without prototypes gets the image alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..checkpoint import load_model
from ..data.dataset import CLEAN, to_tensor
from ..data.degradations import DEGRADATIONS, degrade, rng_for
from ..data.images import centre_crop, images, read_rgb
from ..errors import CheckpointError, ConfigError, DataError, run_command
from ..model.dod import DOD
from ..prototypes import nearest, standardise, statistics_of
from .confusion import Named, as_json, confusion, report
from .tsne import draw, embed, require_libraries

__all__ = ["Labelled", "condition_of", "degraded_images", "synthetic_images"]

OUT = Path("build/conditions")
CALIBRATE = "`python -m dod.training.stages calibrate` computes them"
LEVELS = {"noise": "sigma"}
"""The degradations whose strength a label may give, as in `noise=25`, and the parameter that it sets."""

Pixels = NDArray[np.float32]
Labelled = tuple[str, str, Pixels]
"""(name of the image, label, float32 [H, W, 3] in 0 to 1)."""


def synthetic_images(
    folder: Path, labels: Sequence[str], size: int, seed: int = 0, draws: int = 1
) -> Iterator[Labelled]:
    """The middle of each photograph of a folder and its subfolders, at most `size` px, with each degradation.

    labels: degradations, one with a level (`noise=25`), or "clean". Draw k of `draws` is that of the seed `seed + k`.
    Raises ConfigError for another label, DataError for missing, unreadable or equally named images.
    """
    chosen = [(label, *_parse(label)) for label in labels]
    for name, path in images(folder).items():
        clean = _middle(read_rgb(path), size)
        for label, degradation, fixed in chosen:
            if degradation == CLEAN:
                yield name, label, clean
                continue
            for k in range(draws):
                yield name, label, degrade(clean, degradation, rng_for(name, degradation, seed + k), **fixed)[0]


def degraded_images(folder: Path, size: int) -> Iterator[Labelled]:
    """The middle, at most `size` px, of each image of a folder that has one subfolder for each label.

    Raises DataError where it is missing, has no subfolder, or one of them holds no image or an unreadable one.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not subfolders:
        raise DataError(f"{folder} has no subfolders: it takes one for each degradation, such as {folder / 'haze'}")
    for subfolder in subfolders:
        for name, path in images(subfolder).items():
            yield name, subfolder.name, _middle(read_rgb(path), size)


@torch.no_grad()
def condition_of(model: DOD, pixels: Pixels) -> NDArray[np.float64]:
    """c, [C], of one image, float32 [H, W, 3] in 0 to 1, as at run time: from its native crops."""
    condition, _ = model.modulation(to_tensor(pixels)[None])
    return condition[0].double().numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    for option in ("size", "draws"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option} {getattr(arguments, option)}: it must be at least 1")
    if arguments.figure:
        require_libraries()
    model = load_model(arguments.model, arguments.base, arguments.ddpm)
    if not model.prototypes and not arguments.figure:
        raise CheckpointError(f"{arguments.model} has no prototypes, so there is no table to make: {CALIBRATE}")
    names, labels, conditions = _measure(model, _source(arguments, model))
    statistics = _statistics(model, conditions)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if model.prototypes:
        prototypes = {name: value.numpy() for name, value in model.prototypes.items()}
        near = nearest(conditions, prototypes, statistics)
        found = [Named(*each, *where) for each, where in zip(zip(names, labels, strict=True), near, strict=True)]
        result = confusion(found, tuple(prototypes))
        print(report(result))
        if result.strangers:
            print(f"not conditions of this model, so in no accuracy: {', '.join(result.strangers)}", file=sys.stderr)
        _write_json(arguments.out / "conditions.json", as_json(found, result, **_settings(arguments)))
    else:
        print(f"{arguments.model} has no prototypes, so only the figure is drawn: {CALIBRATE}", file=sys.stderr)
    if arguments.figure:
        points = embed(standardise(conditions, statistics), arguments.seed)
        draw(points, labels, f"t-SNE of the condition c, {arguments.model}", arguments.out / "conditions.png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dod.evaluation.conditions", description=(__doc__ or "").split("\n")[0]
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("photographs", type=Path, nargs="?", help="folder of clean photographs, degraded here")
    source.add_argument("--degraded", type=Path, metavar="FOLDER", help="one subfolder of images per degradation")
    add = parser.add_argument
    add("--model", default="mini", help="preset or checkpoint folder (default: %(default)s)")
    add("--base", help="the base model's folder or hub id, if not where the preset says")
    add("--ddpm", help="the DDPM's folder or hub id, if not where the preset says")
    add(
        "--degradations",
        nargs="+",
        metavar="NAME",
        help="some of haze, rain, noise=25, clean... (default: the model's)",
    )
    add("--size", type=int, default=512, help="images are cropped to at most this, in px (default: %(default)s)")
    add("--draws", type=int, default=1, help="of each degradation for each photograph (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the degradations and of t-SNE (default: %(default)s)")
    add("--no-figure", dest="figure", action="store_false", help="the table alone; needs no scikit-learn")
    add("--out", type=Path, default=OUT, help="folder for the JSON and the figure (default: %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _source(arguments: argparse.Namespace, model: DOD) -> Iterator[Labelled]:
    if arguments.degraded:
        return degraded_images(arguments.degraded, arguments.size)
    labels = arguments.degradations or [name for name in model.preset.conditions if name in DEGRADATIONS]
    return synthetic_images(arguments.photographs, labels, arguments.size, arguments.seed, arguments.draws)


def _measure(model: DOD, source: Iterable[Labelled]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Names, labels and conditions [N, C] of all images."""
    names, labels, conditions = [], [], []
    for name, label, pixels in tqdm(source, "conditions", unit="image", disable=None):
        names.append(name)
        labels.append(label)
        conditions.append(condition_of(model, pixels))
    return names, labels, np.stack(conditions)


def _statistics(model: DOD, conditions: NDArray[np.float64]) -> NDArray[Any]:
    """[1 + C, C]: the calibration's, or, for a model that was never calibrated, those of the images."""
    if model.statistics is not None:
        return model.statistics.numpy()
    if model.prototypes:
        raise CheckpointError(f"the checkpoint has prototypes without the statistics of c: {CALIBRATE}")
    return statistics_of(conditions)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on, as JSON values."""
    source = {"degraded": str(arguments.degraded)}
    if not arguments.degraded:
        source = {"photographs": str(arguments.photographs), "seed": arguments.seed, "draws": arguments.draws}
    return {"model": str(arguments.model), **source, "size": arguments.size}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")


def _parse(label: str) -> tuple[str, dict[str, float]]:
    """(degradation, fixed parameters) of a label."""
    name, _, level = label.partition("=")
    if name not in (*DEGRADATIONS, CLEAN) or ("=" in label and name not in LEVELS):
        raise ConfigError(f"unknown degradation {label!r}: give {', '.join(DEGRADATIONS)}, {CLEAN}, or noise=25")
    try:
        return name, {LEVELS[name]: float(level)} if level else {}
    except ValueError:
        raise ConfigError(f"{label!r}: the level must be a number, as in noise=25") from None


def _middle(pixels: NDArray[np.uint8], size: int) -> Pixels:
    """The middle of an image, at most `size` px on either side, as float32 in 0 to 1."""
    return centre_crop(pixels, size).astype(np.float32) / np.float32(255)


if __name__ == "__main__":
    sys.exit(run_command(main))
