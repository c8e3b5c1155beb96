"""Sizes, padding and crops. Whole numbers and indices only, so that training can be compared with it to the pixel."""

from __future__ import annotations

from math import isqrt

import numpy as np

from ..errors import ImageError

__all__ = ["MARGIN", "crop_indices", "crops", "pad", "padded_size", "reflect_indices", "with_margins"]

MARGIN = 16
"""Reflected pixels around an image, where the bundle's largest side leaves room. The convolutions pad with zeros, which
are grey: without a margin the outermost pixels of restored haze and low light are several grey levels too pale."""


def reflect_indices(length: int, extended: int, before: int = 0) -> np.ndarray:
    """Indices int64 [extended] into an axis of `length`, reflected at its end: 0, 1, .., n-1, n-2, .., 1, 0, 1, ..

    before: so many of them lie before the axis, reflected at its beginning.

    >>> reflect_indices(3, 8).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1]
    >>> reflect_indices(1, 3).tolist()
    [0, 0, 0]
    >>> reflect_indices(3, 8, before=2).tolist()
    [2, 1, 0, 1, 2, 1, 0, 1]
    """
    period = max(1, 2 * (length - 1))
    steps = np.arange(-before, extended - before) % period
    return np.where(steps < length, steps, period - steps)


def padded_size(length: int, multiple: int, least: int, largest: int) -> int:
    """The side that the graphs see for a side of `length` pixels: a multiple, and at least `least` pixels.

    Raises ImageError where it would be more than `largest`.

    >>> [padded_size(n, 64, 256, 1024) for n in (1, 256, 257, 1024)]
    [256, 256, 320, 1024]
    """
    padded = -(-max(length, least) // multiple) * multiple
    if padded > largest:
        raise ImageError(
            f"a side of {length} pixels is too large: this bundle takes at most {largest // multiple * multiple}; "
            f"reduce the image, or rebuild the bundle with --max {-(-length // multiple) * multiple}"
        )
    return padded


def with_margins(length: int, multiple: int, least: int, largest: int) -> int:
    """Return the side that the graphs see for a side of `length` pixels with margins; the image lies in its middle.

    Args:
        length: side of the image in pixels.
        multiple: sides are multiples of it.
        least: smallest side of the graphs.
        largest: side of a tile, a multiple. The margins are narrower than `MARGIN` where it leaves less room. A longer
            side keeps both margins and is no multiple, because tiles lie in it.

    Example:
        >>> [with_margins(n, 64, 256, 1024) for n in (1, 256, 512, 1000, 1024, 1025)]
        [256, 320, 576, 1024, 1024, 1057]
    """
    wanted = length + 2 * MARGIN
    return wanted if length > largest else padded_size(min(wanted, largest), multiple, least, largest)


def pad(pixels: np.ndarray, height: int, width: int, top: int = 0, left: int = 0) -> np.ndarray:
    """Extends [H, W, ...] to [height, width, ...] by reflection, `top` rows above and `left` columns before it."""
    if pixels.shape[:2] == (height, width):
        return pixels
    rows = reflect_indices(pixels.shape[0], height, top)
    return pixels[rows[:, None], reflect_indices(pixels.shape[1], width, left)]


def crop_indices(length: int, per_axis: int, size: int) -> np.ndarray:
    """Where `per_axis` crops of `size` pixels lie along an axis of `length`: indices int64 [per_axis, size].

    The first and the last crop touch the ends and the others lie evenly between; a single crop lies in the middle.
    An axis that is shorter than a crop is first extended at its end by reflection, so that all crops are the same.

    >>> crop_indices(10, 3, 4)[:, 0].tolist()
    [0, 3, 6]
    """
    room = max(0, length - size)
    gaps = per_axis - 1
    starts = [(i * room + gaps // 2) // gaps for i in range(per_axis)] if gaps else [room // 2]
    return reflect_indices(length, max(length, size))[np.array(starts)[:, None] + np.arange(size)]


def crops(pixels: np.ndarray, count: int, size: int) -> np.ndarray:
    """The crops that the MFM sees, from the image at its own resolution, before any padding.

    pixels: [H, W, 3]. Returns [count, 3, size, size], row by row; `count` is a square number.
    """
    grid = isqrt(count)
    rows, columns = (crop_indices(length, grid, size) for length in pixels.shape[:2])
    picked = pixels[rows[:, None, :, None], columns[None, :, None, :]]
    return np.ascontiguousarray(picked.reshape(count, size, size, 3).transpose(0, 3, 1, 2))
