"""PSNR and SSIM, the metrics of every install: RGB in 0..1, no border cropped, as papers on this task report them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dod.errors import DataError

__all__ = ["CORE", "Metric", "core_settings", "core_values", "psnr", "ssim"]

SSIM_WINDOW = 7

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, how it is printed and what it looks at.

    sees: "pair" (an output and its truth), "output" (an output alone) or "set" (all outputs and all truths of a task).
    colour: the colour space and range that it is computed in.
    """

    name: str
    label: str
    sees: Literal["pair", "output", "set"]
    higher_is_better: bool
    digits: int
    colour: str


CORE = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR dB", "pair", True, 2, "RGB in 0..1, float64, no border cropped"),
        Metric("ssim", "SSIM", "pair", True, 4, "RGB in 0..1, float64, mean of the channels, no border cropped"),
    )
}


def core_settings(name: str) -> dict[str, Any]:
    """The exact variant of a metric of CORE, as JSON values."""
    if name == "psnr":
        return {"variant": "10 log10(1 / MSE) over all pixels and channels"}
    return {
        "variant": f"{SSIM_WINDOW}x{SSIM_WINDOW} windows, uniform weights",
        "library": f"scikit-image {version('scikit-image')}",
    }


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), in float64; infinite for equal images.

    a, b: of one shape, uint8 or float in 0..1. Raises DataError for others.

    >>> round(psnr(np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.1)), 6)
    20.0
    """
    first, second = _unit(a, b)
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Array, b: Array) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it: 7x7 windows, the mean of the channels.

    a, b: [H, W, 3], uint8 or float in 0..1, at least 7x7 pixels. Raises DataError for others.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise DataError(f"SSIM needs scikit-image ({error}): pip install -e '.[eval]'") from error
    first, second = _unit(a, b)
    if min(first.shape[:2]) < SSIM_WINDOW:
        raise DataError(f"SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {list(first.shape)}")
    return float(np.asarray(structural_similarity(first, second, data_range=1.0, channel_axis=2)))


def core_values(name: str, output: Array, truth: Array, metrics: Collection[str] = tuple(CORE)) -> dict[str, float]:
    """The metrics of CORE that are asked for, of an output [H, W, 3] against its truth, by name.

    Raises DataError, with the image's name, where the two cannot be compared.
    """
    functions = {"psnr": psnr, "ssim": ssim}
    try:
        return {each: function(output, truth) for each, function in functions.items() if each in metrics}
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _unit(a: Array, b: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two images as float64 in 0..1."""
    if a.shape != b.shape or not a.size:
        raise DataError(f"the images differ in size: {_size(a)} and {_size(b)}")
    return _unit_of(a), _unit_of(b)


def _unit_of(image: Array) -> NDArray[np.float64]:
    if image.dtype == np.uint8:
        return image.astype(np.float64) / 255
    values = image.astype(np.float64)
    if image.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):
        raise DataError(f"an image must be uint8, or float in 0..1, not {image.dtype}: clip it first")
    return values


def _size(image: Array) -> str:
    return f"{image.shape[1]}x{image.shape[0]}" if image.ndim >= 2 else str(list(image.shape))
