"""Matching of the tone of a restored tile to that of the whole image, and the reduction of images by area averaging."""

from __future__ import annotations

import numpy as np

__all__ = ["match_tone", "reduce_image"]

CELL = 16
"""Minimum side in pixels of the cells whose means `match_tone` compares. A cell is never smaller than a pixel of the
guide."""
SPREAD = 3.0
"""Standard deviation, in cells, of the Gaussian windows in which `match_tone` fits gain and offset."""
FLOOR = 4e-3
"""Variance of values in [-1, 1] that regularizes the gain of `match_tone`: flat areas keep a gain near 1."""


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
        bounds = np.linspace(0, length, count + 1, dtype=np.float64)
        weights, first = _means(bounds, length), bounds[:-1].astype(int)
        total = np.zeros((), np.float32)
        for tap in range(int(np.ceil(length / count)) + 1):  # few of the weights are more than 0
            index = np.minimum(first + tap, length - 1)
            weight = weights[np.arange(count), index] * (first + tap < length)
            part: np.ndarray = np.take(images, index, axis)
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
        position = np.interp(np.arange(place.stop - place.start, dtype=np.int64) + 0.5, centers, index)
        self.pixels = np.maximum(1 - np.abs(position[:, None] - index), 0).astype(np.float32)


def _means(bounds: np.ndarray, length: int) -> np.ndarray:
    """Return the matrix that averages an axis over the intervals between bounds, float32 [intervals, length]."""
    index = np.arange(length)
    shares = np.minimum(bounds[1:, None], index + 1) - np.maximum(bounds[:-1, None], index)
    shares = np.maximum(shares, 0)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
