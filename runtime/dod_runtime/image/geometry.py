"""Padding, margins and crops, in integers only, so that the crops of training and runtime are the same pixels."""

from __future__ import annotations

from math import isqrt

import numpy as np

from ..errors import ImageError

__all__ = ["MARGIN", "crop_indices", "crops", "pad", "padded_size", "reflect_indices", "with_margins"]

MARGIN = 16
"""Reflected pixels on each side of an image, as far as the bundle's maximum size leaves room. Convolutions pad with
zeros, which stand for mid-gray. Without a margin the borders of restored haze and low light are several gray levels too
bright."""


def reflect_indices(length: int, extended: int, before: int = 0) -> np.ndarray:
    """Return indices that extend an axis by reflection: 0, 1, .., n-1, n-2, .., 1, 0, 1, ..

    Args:
        length: length of the axis.
        extended: length of the extended axis.
        before: number of indices before the axis, reflected at its beginning.

    Returns:
        int64 `[extended]`.

    Example:
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


def padded_size(length: int, multiple: int, min_size: int, max_size: int) -> int:
    """Return the side that the graphs see for a side of an image without margins.

    Args:
        length: side of the image in pixels.
        multiple: the result is a multiple of it.
        min_size: smallest side of the graphs in pixels.
        max_size: largest side of the graphs in pixels.

    Returns:
        Side in pixels.

    Raises:
        ImageError: the result would be more than `max_size`.

    Example:
        >>> [padded_size(n, 64, 256, 1024) for n in (1, 256, 257, 1024)]
        [256, 256, 320, 1024]
    """
    padded = -(-max(length, min_size) // multiple) * multiple
    if padded > max_size:
        raise ImageError(
            f"a side of {length} px is too large: this bundle takes at most {max_size // multiple * multiple} px; "
            f"reduce the image, or rebuild the bundle with --max-size {-(-length // multiple) * multiple}"
        )
    return padded


def with_margins(length: int, multiple: int, min_size: int, tile_size: int) -> int:
    """Return the side of an image with margins. The image is in its middle.

    A side of up to `tile_size` pixels is run whole, so the result is a valid side of the graphs and the margins are
    narrower than `MARGIN` if the tile has no room for more. A longer side is run in tiles: it gets both margins in
    full and need not be a multiple.

    Args:
        length: side of the image in pixels.
        multiple: sides of the graphs are multiples of it.
        min_size: smallest side of the graphs in pixels.
        tile_size: side of a tile in pixels, a multiple of `multiple`.

    Returns:
        Side in pixels.

    Example:
        >>> [with_margins(n, 64, 256, 1024) for n in (1, 256, 512, 1000, 1024, 1025)]
        [256, 320, 576, 1024, 1024, 1057]
    """
    full = length + 2 * MARGIN
    return full if length > tile_size else padded_size(min(full, tile_size), multiple, min_size, tile_size)


def pad(pixels: np.ndarray, height: int, width: int, top: int = 0, left: int = 0) -> np.ndarray:
    """Extend an image by reflection.

    Args:
        pixels: `[H, W, ...]` of any dtype.
        height: rows of the result.
        width: columns of the result.
        top: number of rows above the image. The others are below it.
        left: number of columns to the left of the image. The others are to the right of it.

    Returns:
        `[height, width, ...]`; `pixels` itself if it has that size.

    Example:
        >>> pad(np.array([[1, 2], [3, 4]]), 2, 4, left=1).tolist()
        [[2, 1, 2, 1], [4, 3, 4, 3]]
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    rows = reflect_indices(pixels.shape[0], height, top)
    return pixels[rows[:, None], reflect_indices(pixels.shape[1], width, left)]


def crop_indices(length: int, per_axis: int, size: int) -> np.ndarray:
    """Return the pixels of evenly spread crops along one axis.

    The first and the last crop touch the ends of the axis. A single crop is in the middle. An axis that is shorter than
    a crop is extended at its end by reflection, and all crops are equal.

    Args:
        length: length of the axis in pixels.
        per_axis: number of crops.
        size: side of a crop in pixels.

    Returns:
        Indices into the axis, int64 `[per_axis, size]`.

    Example:
        >>> crop_indices(10, 3, 4).tolist()
        [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    """
    room = max(0, length - size)
    gaps = per_axis - 1
    starts = [(i * room + gaps // 2) // gaps for i in range(per_axis)] if gaps else [room // 2]
    return reflect_indices(length, max(length, size))[np.array(starts)[:, None] + np.arange(size)]


def crops(pixels: np.ndarray, count: int, size: int) -> np.ndarray:
    """Return the crops that the MFM and the gate see, at the native resolution of the image.

    Args:
        pixels: image without margins, `[H, W, 3]`.
        count: number of crops, a square number.
        size: height and width of a crop in pixels.

    Returns:
        `[count, 3, size, size]`, row by row, in the dtype of `pixels`.

    Example:
        >>> crops(np.zeros((100, 200, 3), np.float32), count=4, size=64).shape
        (4, 3, 64, 64)
    """
    grid = isqrt(count)
    rows, columns = (crop_indices(length, grid, size) for length in pixels.shape[:2])
    picked = pixels[rows[:, None, :, None], columns[None, :, None, :]]
    return np.ascontiguousarray(picked.reshape(count, size, size, 3).transpose(0, 3, 1, 2))
