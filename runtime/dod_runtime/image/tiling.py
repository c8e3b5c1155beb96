"""Restoration of large images in overlapping tiles of one size, which are matched in tone and blended.

A network that normalizes over its whole input (GroupNorm, attention) restores each tile in a slightly different tone.
A *guide* removes these differences: it is the whole image, reduced to a size that fits and restored in one run.
`match_tone` maps the tone of each tile to that of the guide before the tiles are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import UsageError
from .geometry import MARGIN, reflect_indices, with_margins

__all__ = [
    "blend_weights",
    "check_tile_size",
    "match_tone",
    "reduce_image",
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
CELL = 16
"""Minimum side in pixels of the cells whose means `match_tone` compares. A cell is never smaller than a pixel of the
guide."""
SPREAD = 3.0
"""Standard deviation, in cells, of the Gaussian windows in which `match_tone` fits gain and offset."""
FLOOR = 4e-3
"""Variance of values in [-1, 1] that regularizes the gain of `match_tone`: flat areas keep a gain near 1."""


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
        >>> blend_weights(12, 8).round(2).tolist()
        [[1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.33], [0.33, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]]
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
    moved = []
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


def reduce_image(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Reduce images by area averaging.

    Args:
        images: float32 `[..., H, W]`.
        height: rows of the result, at most H.
        width: columns of the result, at most W. The aspect ratio may change.

    Returns:
        float32 `[..., height, width]` in the range of `images`; `images` itself if it has that size.

    Example:
        >>> reduce_image(np.arange(12, dtype=np.float32).reshape(3, 4), 3, 2).tolist()
        [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]
    """
    if images.shape[-2:] == (height, width):
        return images
    for axis, count in ((-2, height), (-1, width)):
        length = images.shape[axis]
        bounds = np.linspace(0, length, count + 1)
        weights, first = _means(bounds, length), bounds[:-1].astype(int)
        total = np.zeros((), np.float32)
        for tap in range(int(np.ceil(length / count)) + 1):  # few of the weights are more than 0
            index = np.minimum(first + tap, length - 1)
            weight = weights[np.arange(count), index] * (first + tap < length)
            part = np.take(images, index, axis)
            part *= weight[:, None] if axis == -2 else weight
            total = np.add(total, part, out=total if tap else part)
        images = total
    return images


def match_tone(tile: np.ndarray, guide: np.ndarray, rows: slice, columns: slice, height: int, width: int) -> np.ndarray:
    """Map the tone of a restored tile to that of the restored guide by a smooth gain and offset per channel.

    The whole image is divided into cells of at least `CELL` pixels, each a block of the guide's pixels. Over the cells
    inside the tile, the means of the tile are fitted to those of the guide: guide = gain * tile + offset, by least
    squares in Gaussian windows of `SPREAD` cells, with the gain drawn to 1 where the cells hardly vary (the guided
    filter of He et al. 2013). Gain and offset are smoothed, interpolated and applied to the pixels, so all detail is
    that of the tile. A tile that agrees with the guide does not change.

    Args:
        tile: restored tile, float32 `[..., h, w]` in about [-1, 1].
        guide: the whole image at a reduced size, restored, float32 `[..., h', w']` in the same range.
        rows: rows of the tile in the whole image.
        columns: columns of the tile in the whole image.
        height: rows of the whole image.
        width: columns of the whole image.

    Returns:
        float32 `[..., h, w]`.
    """
    down, across = _Axis(rows, height, guide.shape[-2]), _Axis(columns, width, guide.shape[-1])
    own = down.tile_means @ tile @ across.tile_means.T
    wanted = down.guide_means @ guide @ across.guide_means.T

    def smooth(values: np.ndarray) -> np.ndarray:
        return down.window @ values @ across.window.T

    mean, difference = smooth(own), wanted - own
    variance = smooth(own * own) - mean * mean
    shift = smooth(difference)
    gain = (smooth(own * difference) - mean * shift) / (np.maximum(variance, 0) + FLOOR)
    gain, offset = smooth(gain), smooth(shift - gain * mean)
    gain, offset = (down.pixels @ values @ across.pixels.T for values in (gain, offset))
    return tile + gain * tile + offset


class _Axis:
    """The cells of a tile along one axis, as matrices that map between cells, pixels and guide.

    Attributes:
        tile_means: means of the tile over the cells, float32 `[cells, pixels of the tile]`.
        guide_means: means of the guide over the cells, float32 `[cells, pixels of the guide]`.
        window: Gaussian mean over neighboring cells, float32 `[cells, cells]`.
        pixels: linear interpolation between the centers of the cells, constant beyond the outermost, float32
            `[pixels of the tile, cells]`.
    """

    def __init__(self, place: slice, length: int, reduced: int) -> None:
        scale = length / reduced
        joined = int(np.ceil(CELL / scale))
        edges = np.minimum(np.arange(0, reduced + joined, joined), reduced)
        bounds = edges * scale
        inside = (bounds[:-1] >= place.start - 1e-6) & (bounds[1:] <= place.stop + 1e-6)
        if not inside.any():  # a guide of few pixels, whose cells are larger than a tile
            inside = (bounds[1:] > place.start) & (bounds[:-1] < place.stop)
        first, stop = int(inside.argmax()), len(inside) - int(inside[::-1].argmax())
        bounds = np.clip(bounds[first : stop + 1] - place.start, 0, place.stop - place.start)
        self.tile_means = _means(bounds, place.stop - place.start)
        self.guide_means = _means(edges[first : stop + 1], reduced)
        index = np.arange(stop - first)
        window = np.exp(-0.5 * ((index[:, None] - index) / SPREAD) ** 2)
        self.window = (window / window.sum(axis=1, keepdims=True)).astype(np.float32)
        centers = (bounds[1:] + bounds[:-1]) / 2
        position = np.interp(np.arange(place.stop - place.start) + 0.5, centers, index)
        self.pixels = np.maximum(1 - np.abs(position[:, None] - index), 0).astype(np.float32)


def _means(bounds: np.ndarray, length: int) -> np.ndarray:
    """Return the matrix that averages an axis over the intervals between bounds in pixels: float32 [intervals, length]."""
    index = np.arange(length)
    shares = np.minimum(bounds[1:, None], index + 1) - np.maximum(bounds[:-1, None], index)
    shares = np.maximum(shares, 0)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


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
