"""Pictures that are larger than a bundle takes are run in overlapping tiles of one size and blended."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .errors import UsageError

__all__ = ["blend_weights", "check_tile", "tile_starts", "tiles"]

OVERLAP = 8
"""Neighbours share an eighth of a tile's side at least."""


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of `tile` pixels begin along an axis of `length`: evenly spread, the first and last at the ends.

    An axis that is no longer than a tile has one.

    >>> tile_starts(512, 512), tile_starts(513, 512), tile_starts(1600, 512)
    ([0], [0, 1], [0, 363, 725, 1088])
    """
    room = length - tile
    if room <= 0:
        return [0]
    gaps = -(-room // (tile - tile // OVERLAP))
    return [(i * room + gaps // 2) // gaps for i in range(gaps + 1)]


def blend_weights(length: int, tile: int) -> np.ndarray:
    """How much each tile counts at each of its pixels along an axis: float32 [number of tiles, min(length, tile)].

    It rises over the overlap from either end of a tile, but not at the ends of the axis; at every pixel of the axis the
    weights of all tiles sum to one.
    """
    starts, side = tile_starts(length, tile), min(length, tile)
    ramp = max(1, side // OVERLAP)
    position = np.arange(side)
    weights = np.ones((len(starts), side))
    weights[1:] = np.minimum(weights[1:], (position + 1) / (ramp + 1))
    weights[:-1] = np.minimum(weights[:-1], (side - position) / (ramp + 1))
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + side]
    return weights.astype(np.float32)


def tiles(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The rows, columns and weights (float32 [rows, columns]) of each tile of a picture, row by row.

    All tiles are of one size, so that a backend prepares for it once; the weights of all sum to one at every pixel.
    """
    down, across = blend_weights(height, tile), blend_weights(width, tile)
    for top, vertical in zip(tile_starts(height, tile), down, strict=True):
        for left, horizontal in zip(tile_starts(width, tile), across, strict=True):
            rows, columns = slice(top, top + len(vertical)), slice(left, left + len(horizontal))
            yield rows, columns, vertical[:, None] * horizontal


def check_tile(tile: int | None, multiple: int, least: int, largest: int) -> int:
    """The side of tiles, `largest` where None was asked for. All are pixels.

    Raises UsageError for a side that is no multiple of `multiple` between `least` and `largest`, with the nearest one.
    """
    lowest, highest = -(-least // multiple) * multiple, largest // multiple * multiple
    if tile is None:
        return highest
    if tile % multiple or not lowest <= tile <= highest:
        nearest = min(max(round(tile / multiple) * multiple, lowest), highest)
        raise UsageError(
            f"tile {tile}: this bundle takes multiples of {multiple} from {lowest} to {highest} pixels; "
            f"the nearest is {nearest}"
        )
    return tile
