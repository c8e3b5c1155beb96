"""PSNR and SSIM of RGB images in 0 to 1 without border cropping, as papers on this task report them."""

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
"""Side of SSIM's windows in px."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Metric:
    """Description of a metric.

    Attributes:
        name: name on the command line.
        label: column title.
        sees: images that it takes: "pair" (an output and its clean version), "output" (an output alone) or "set" (all
            outputs and all clean images of a degradation).
        higher_is_better: direction of the metric.
        digits: decimals in tables.
        colour: color space and range in which it is computed.
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
"""Metrics of every installation, by name."""


def core_settings(name: str) -> dict[str, Any]:
    """Describe the exact variant of a metric of `CORE`.

    Args:
        name: name of the metric.

    Returns:
        JSON values.
    """
    if name == "psnr":
        return {"variant": "10 log10(1 / MSE) over all pixels and channels"}
    return {
        "variant": f"{SSIM_WINDOW}x{SSIM_WINDOW} windows, uniform weights",
        "library": f"scikit-image {version('scikit-image')}",
    }


def psnr(a: Array, b: Array) -> float:
    """Return the peak signal-to-noise ratio in dB, 10 log10(1 / MSE), in float64.

    Args:
        a: image, uint8 or float in 0 to 1.
        b: image of the same shape.

    Returns:
        PSNR; infinite for equal images.

    Raises:
        DataError: another shape, dtype or range.

    Example:
        >>> round(psnr(np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.1)), 6)
        20.0
    """
    first, second = _unit(a, b)
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Array, b: Array) -> float:
    """Return the structural similarity (Wang et al. 2004): 7x7 windows, mean of the channels, by scikit-image.

    Args:
        a: image [H, W, 3], uint8 or float in 0 to 1, at least 7x7 px.
        b: image of the same shape.

    Returns:
        SSIM in -1 to 1.

    Raises:
        DataError: another shape, dtype or range, or scikit-image is missing.
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
    """Compute metrics of `CORE`.

    Args:
        name: name of the image, for errors.
        output: restored image [H, W, 3].
        truth: clean image [H, W, 3].
        metrics: names of metrics; those not in `CORE` are ignored.

    Returns:
        Values by name.

    Raises:
        DataError: the images cannot be compared.
    """
    functions = {"psnr": psnr, "ssim": ssim}
    try:
        return {each: function(output, truth) for each, function in functions.items() if each in metrics}
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _unit(a: Array, b: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two images as float64 in 0 to 1."""
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
