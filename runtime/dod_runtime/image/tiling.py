"""Tiling of images that are larger than a bundle takes: overlapping tiles of one size, matched in tone and blended.

A network that normalizes over its whole input (GroupNorm, attention) restores each tile in a tone of its own. A *guide*
removes these differences: the whole image, reduced to a size that fits and restored in one run. `match_tone` maps the
tone of each tile to that of the guide before the tiles are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import UsageError
from .geometry import MARGIN, reflect_indices, with_margins

__all__ = [
    "blend_weights",
    "check_tile",
    "match_tone",
    "reduce_image",
    "restore_guide",
    "restore_tiles",
    "tile_starts",
    "tiles",
]

OVERLAP = 8
"""Neighbours share an eighth of a tile's side at least."""
DISCARDED = 8
"""Pixels along the inner borders of a tile that do not count: convolutions see zeros beyond them. At most a quarter of
the overlap."""
CELL = 16
"""Side in pixels of the cells whose means `match_tone` compares, at least; never less than a pixel of the guide."""
SPREAD = 3.0
"""Standard deviation, in cells, of the windows in which `match_tone` fits gain and offset."""
FLOOR = 4e-3
"""Variance, of values in [-1, 1], that `match_tone` adds where it fits a gain: flat areas keep a gain near 1."""


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

    It rises over the overlap from either end of a tile, but not at the ends of the axis, and is 0 in the outermost
    pixels (see `DISCARDED`). At every pixel of the axis the weights of all tiles sum to one.
    """
    starts, side = tile_starts(length, tile), min(length, tile)
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


def tiles(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The rows, columns and weights (float32 [rows, columns]) of each tile of an image, row by row.

    All tiles are of one size, so that a backend prepares for it once; the weights of all sum to one at every pixel.
    """
    down, across = blend_weights(height, tile), blend_weights(width, tile)
    for top, vertical in zip(tile_starts(height, tile), down, strict=True):
        for left, horizontal in zip(tile_starts(width, tile), across, strict=True):
            rows, columns = slice(top, top + len(vertical)), slice(left, left + len(horizontal))
            yield rows, columns, vertical[:, None] * horizontal


def restore_tiles(
    images: np.ndarray,
    tile: int,
    restore: Callable[[np.ndarray], np.ndarray],
    guide: np.ndarray | None,
) -> np.ndarray:
    """Restore images of one size that are larger than a tile, without steps in tone where tiles meet.

    The larger the guide, the nearer its own tone is to that of the whole image: zero padding has a larger share in what
    a network normalizes over in a small one. Its aspect ratio may differ from the images'.

    Args:
        images: float32 [B, C, H, W] in [-1, 1], at least one side longer than `tile`.
        tile: side of the tiles in pixels.
        restore: restores [B, C, h, w] of a tile's size; the same shape out.
        guide: float32 [B, C, h, w], the whole images restored, at their own size or a smaller one; None where tiles
            keep their own tone, as those of an image that passes the model do.

    Returns:
        float32 [B, C, H, W].
    """
    height, width = images.shape[2:]
    restored = np.zeros_like(images)
    for rows, columns, weights in tiles(height, width, tile):
        part = restore(np.ascontiguousarray(images[:, :, rows, columns]))
        if guide is not None:
            part = match_tone(part, guide, rows, columns, height, width)
        restored[:, :, rows, columns] += weights * part
    return restored


def restore_guide(
    images: np.ndarray,
    restore: Callable[[np.ndarray], np.ndarray],
    multiple: int,
    least: int,
    tile: int,
    largest: int,
) -> np.ndarray:
    """Restore images that are larger than a tile in one run, as the guide of their tiles.

    An axis that is run whole without tiles gets the same margins here, so that the guide has the tone of the image
    restored whole. A longer axis is reduced.

    Args:
        images: float32 [B, C, H, W] in [-1, 1]; a side longer than `tile` has margins of `MARGIN` pixels.
        restore: restores [B, C, h, w] of the guide's size; the same shape out.
        multiple: sides of the graphs are multiples of it.
        least: smallest side of the graphs in pixels.
        tile: side of the tiles in pixels.
        largest: largest side of the graphs in pixels.

    Returns:
        float32 [B, C, h, w], h and w at most `largest` or, of an axis that is not reduced, those of `images`.
    """
    whole, size = images, list(images.shape[2:])
    moved = []
    for axis, side in enumerate(size):
        length = side - 2 * MARGIN
        if side > tile and length <= largest:
            size[axis] = with_margins(length, multiple, least, largest)
            before = (size[axis] - length) // 2
            whole = np.take(whole, MARGIN + reflect_indices(length, size[axis], before), axis + 2)
            moved.append((axis + 2, reflect_indices(size[axis], side, MARGIN - before)))
        elif side > tile:
            size[axis] = largest // multiple * multiple
    guide = restore(np.ascontiguousarray(reduce_image(whole, *size)))
    for axis, indices in moved:
        guide = np.take(guide, indices, axis)
    return guide


def reduce_image(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Reduce images to `height` x `width` pixels by area means.

    Args:
        images: float32 [..., H, W].
        height: rows of the result, at most H.
        width: columns of the result, at most W. The aspect ratio may change.

    Returns:
        float32 [..., height, width]; the range is that of `images`.
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
    that of the tile. A tile that agrees with the guide stays as it is.

    Args:
        tile: float32 [..., h, w], in about [-1, 1].
        guide: float32 [..., h', w'], the whole image at a reduced size, in the same range.
        rows: rows of the tile in the whole image.
        columns: columns of the tile in the whole image.
        height: rows of the whole image.
        width: columns of the whole image.

    Returns:
        float32 [..., h, w].
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
    """The cells of a tile along one axis, and the linear maps between them, the pixels and the guide.

    tile_means: float32 [cells, pixels of the tile]. guide_means: float32 [cells, pixels of the guide]. window: float32
    [cells, cells], a Gaussian mean. pixels: float32 [pixels of the tile, cells], linear interpolation between the
    centres of the cells, constant beyond them.
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
        centres = (bounds[1:] + bounds[:-1]) / 2
        position = np.interp(np.arange(place.stop - place.start) + 0.5, centres, index)
        self.pixels = np.maximum(1 - np.abs(position[:, None] - index), 0).astype(np.float32)


def _means(bounds: np.ndarray, length: int) -> np.ndarray:
    """float32 [intervals, length]: the mean of an axis over each interval between neighbouring bounds, in pixels."""
    index = np.arange(length)
    shares = np.minimum(bounds[1:, None], index + 1) - np.maximum(bounds[:-1, None], index)
    shares = np.maximum(shares, 0)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


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
