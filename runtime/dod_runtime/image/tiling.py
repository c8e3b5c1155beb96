"""Restoration of large images in overlapping tiles of one size, which are matched in tone and blended.

A network that normalizes over its whole input (GroupNorm, attention) restores each tile in a slightly different tone.
A *guide* removes these differences: it is the whole image, reduced to a size that fits and restored in one run.
`tone.match_tone` maps the tone of each tile to that of the guide before the tiles are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import UsageError
from .geometry import MARGIN, reflect_indices, with_margins
from .tone import match_tone, reduce_image

__all__ = [
    "blend_weights",
    "check_tile_size",
    "restore_guide",
    "restore_tiles",
    "tile_starts",
    "tiles",
]

OVERLAP = 8
"""Neighboring tiles overlap by at least their side divided by this."""
DISCARDED = 8
"""Number of pixels along the inner borders of a tile with weight 0, because zero padding affects them. It is at most a
quarter of the overlap."""


def tile_starts(length: int, tile_size: int) -> list[int]:
    """Return the first pixel of each tile along an axis. Tiles are evenly spread; the first and last touch the ends.

    Args:
        length: length of the axis in pixels.
        tile_size: side of a tile in pixels.

    Returns:
        First pixels in ascending order; `[0]` for an axis that is no longer than a tile.

    Example:
        >>> tile_starts(512, 512), tile_starts(513, 512), tile_starts(1600, 512)
        ([0], [0, 1], [0, 363, 725, 1088])
    """
    room = length - tile_size
    if room <= 0:
        return [0]
    gaps = -(-room // (tile_size - tile_size // OVERLAP))
    return [(i * room + gaps // 2) // gaps for i in range(gaps + 1)]


def blend_weights(length: int, tile_size: int) -> np.ndarray:
    """Return the weights with which tiles are blended along an axis.

    The weight of a tile rises over the overlap from both of its ends, except at the ends of the axis, and is 0 in its
    outermost pixels (see `DISCARDED`). At every pixel of the axis the weights of all tiles sum to 1.

    Args:
        length: length of the axis in pixels.
        tile_size: side of a tile in pixels.

    Returns:
        float32 `[number of tiles, min(length, tile_size)]`.

    Example:
        >>> print(blend_weights(12, 8).round(2))
        [[1.   1.   1.   1.   0.67 0.5  0.5  0.33]
         [0.33 0.5  0.5  0.67 1.   1.   1.   1.  ]]
    """
    starts, side = tile_starts(length, tile_size), min(length, tile_size)
    overlap = max(1, side // OVERLAP)
    discarded = min(DISCARDED, overlap // 4)
    position = np.arange(side)
    weights = np.ones((len(starts), side))
    rise = np.clip((position + 1 - discarded) / (overlap + 1 - 2 * discarded), 0, 1)
    weights[1:] = rise
    weights[:-1] = np.minimum(weights[:-1], rise[::-1])
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + side]
    return weights.astype(np.float32)


def tiles(height: int, width: int, tile_size: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Iterate over the tiles of an image, row by row. All have the same shape, so that a backend prepares for it once.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        tile_size: side of a tile in pixels.

    Yields:
        Rows, columns and weights of a tile, float32 `[rows, columns]`. At every pixel of the image the weights of all
        tiles sum to 1.

    Example:
        >>> [(rows.start, columns.start, weights.shape) for rows, columns, weights in tiles(60, 100, 64)]
        [(0, 0, (60, 64)), (0, 36, (60, 64))]
    """
    down, across = blend_weights(height, tile_size), blend_weights(width, tile_size)
    for top, vertical in zip(tile_starts(height, tile_size), down, strict=True):
        for left, horizontal in zip(tile_starts(width, tile_size), across, strict=True):
            rows, columns = slice(top, top + len(vertical)), slice(left, left + len(horizontal))
            yield rows, columns, vertical[:, None] * horizontal


def restore_tiles(
    images: np.ndarray,
    tile_size: int,
    restore: Callable[[np.ndarray], np.ndarray],
    guide: np.ndarray | None,
) -> np.ndarray:
    """Restore images of one size in tiles, without visible borders between tiles.

    A large guide is better than a small one: in a small image, zero padding has a larger share of the values that the
    network normalizes over, which changes the tone.

    Args:
        images: float32 `[B, C, H, W]` in [-1, 1], at least one side longer than `tile_size`.
        tile_size: side of a tile in pixels.
        restore: restores a batch of tiles, `[B, C, h, w]`, and returns the same shape.
        guide: the whole images restored, at their own size or a smaller one, float32 `[B, C, h, w]`. The aspect ratio
            may differ. None leaves each tile its own tone, as for images that bypass the model.

    Returns:
        Restored images, float32 `[B, C, H, W]`.
    """
    height, width = images.shape[2:]
    restored = np.zeros_like(images)
    for rows, columns, weights in tiles(height, width, tile_size):
        part = restore(np.ascontiguousarray(images[:, :, rows, columns]))
        if guide is not None:
            part = match_tone(part, guide, rows, columns, height, width)
        restored[:, :, rows, columns] += weights * part
    return restored


def restore_guide(
    images: np.ndarray,
    restore: Callable[[np.ndarray], np.ndarray],
    multiple: int,
    min_size: int,
    tile_size: int,
    max_size: int,
) -> np.ndarray:
    """Restore images that are larger than a tile in one run, as the guide of their tiles.

    An axis that the graphs can take whole gets the margins that it would have without tiles, so that the guide has the
    tone of the image restored whole. A longer axis is reduced.

    Args:
        images: float32 `[B, C, H, W]` in [-1, 1]. A side longer than `tile_size` has margins of `MARGIN` pixels.
        restore: restores a batch of images, `[B, C, h, w]`, and returns the same shape.
        multiple: sides of the graphs are multiples of it.
        min_size: smallest side of the graphs in pixels.
        tile_size: side of a tile in pixels.
        max_size: largest side of the graphs in pixels.

    Returns:
        float32 `[B, C, h, w]`. An axis that is not reduced has the length of that of `images`, another one is at most
        `max_size`.
    """
    whole, size = images, list(images.shape[2:])
    moved: list[tuple[int, np.ndarray]] = []
    for axis, side in enumerate(size):
        length = side - 2 * MARGIN
        if side > tile_size and length <= max_size:
            size[axis] = with_margins(length, multiple, min_size, max_size)
            before = (size[axis] - length) // 2
            whole = np.take(whole, MARGIN + reflect_indices(length, size[axis], before), axis + 2)
            moved.append((axis + 2, reflect_indices(size[axis], side, MARGIN - before)))
        elif side > tile_size:
            size[axis] = max_size // multiple * multiple
    guide = restore(np.ascontiguousarray(reduce_image(whole, *size)))
    for axis, indices in moved:
        guide = np.take(guide, indices, axis)
    return guide


def check_tile_size(tile_size: int | None, multiple: int, min_size: int, max_size: int) -> int:
    """Check the side of tiles that a user requests.

    Args:
        tile_size: requested side in pixels; None for the largest one.
        multiple: sides of the graphs are multiples of it.
        min_size: smallest side of the graphs in pixels.
        max_size: largest side of the graphs in pixels.

    Returns:
        Side of the tiles in pixels.

    Raises:
        UsageError: the graphs do not take the requested side. The message names the nearest side that they take.

    Example:
        >>> check_tile_size(None, 64, 256, 1000)
        960
    """
    smallest, largest = -(-min_size // multiple) * multiple, max_size // multiple * multiple
    if tile_size is None:
        return largest
    if tile_size % multiple or not smallest <= tile_size <= largest:
        nearest = min(max(round(tile_size / multiple) * multiple, smallest), largest)
        raise UsageError(
            f"tile_size {tile_size}: this bundle takes multiples of {multiple} from {smallest} to {largest} px; "
            f"the nearest is {nearest}"
        )
    return tile_size
