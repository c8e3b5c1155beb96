"""Anti-aliased lines and discs: the point spread functions of blur and the streaks of rain. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dod.errors import DataError

__all__ = ["convolve", "defocus_kernel", "motion_kernel", "random_kernel", "streaks"]

Array = NDArray[np.float32]


def motion_kernel(length: float, angle: float, bend: float = 0.0) -> Array:
    """The path of a camera that moves while the shutter is open: [k, k], k odd, sum 1, centroid in the centre.

    `length` of the chord in px, `angle` in degrees counter-clockwise from the horizontal, `bend`: the height of the arc
    over its chord, as a fraction of the length (0: a straight line).
    """
    u = np.linspace(-1.0, 1.0, 4 * int(np.ceil(length)) + 1)
    along, across = u * (length - 1) / 2, bend * length * (1 - u**2)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = along * cos - across * sin, -along * sin - across * cos
    x, y = x - x.mean(), y - y.mean()
    radius = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()) - 1e-6))
    size = 2 * radius + 1
    kernel = _splat(x + radius, y + radius, np.ones_like(x), (size, size))
    return kernel / kernel.sum()


def defocus_kernel(radius: float) -> Array:
    """The disc of an unfocused lens, anti-aliased: [k, k], k odd, sum 1. `radius` in px."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def random_kernel(rng: np.random.Generator) -> Array:
    """Motion (straight or slightly curved, 5 to 21 px) two times out of three, else defocus (radius 1.2 to 4 px)."""
    length, angle, bend = rng.uniform(5, 21), rng.uniform(0, 180), rng.uniform(-0.25, 0.25)
    curved, radius = rng.random() < 0.5, rng.uniform(1.2, 4)
    if rng.random() < 1 / 3:
        return defocus_kernel(radius)
    return motion_kernel(length, angle, bend if curved else 0.0)


def convolve(image: Array, kernel: Array) -> Array:
    """`image` [H, W, 3] with `kernel` [k, k] (true convolution), borders reflected without repeating the edge.

    A sum of shifted copies, one for each tap that is not zero: small kernels need neither an FFT nor scipy.
    Raises DataError for a kernel that is not square with an odd side: it would move the image.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise DataError(f"a blur kernel must be square with an odd side, not {list(kernel.shape)}")
    height, width, _ = image.shape
    reach = kernel.shape[0] // 2
    mode = "reflect" if min(height, width) > 1 else "edge"
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode=mode)
    result, shifted = np.zeros_like(image), np.empty_like(image)
    flipped = kernel[::-1, ::-1]
    for dy, dx in np.argwhere(flipped > 1e-6):
        np.multiply(padded[dy : dy + height, dx : dx + width], flipped[dy, dx], out=shifted)
        result += shifted
    return result


def streaks(
    shape: tuple[int, int], rng: np.random.Generator, angle: float, length: float, width: float, density: float
) -> Array:
    """A field of falling drops: sparse noise, motion-blurred at sub-pixel angles. [H, W], 0 to 1.

    `angle` in degrees from the vertical; `length` and `width` of the longest streaks in px; `density` in streaks per
    1,000 px. Every streak has its own length, brightness, and a direction within two degrees of the common one.
    """
    height, width_px = shape
    margin = length / 2 + 1
    count = rng.poisson(density / 1000 * (height + 2 * margin) * (width_px + 2 * margin))
    x0 = rng.uniform(-margin, width_px + margin, (count, 1, 1))
    y0 = rng.uniform(-margin, height + margin, (count, 1, 1))
    tilt = np.radians(angle + rng.uniform(-2, 2, (count, 1, 1)))
    share = rng.uniform(0.4, 1.0, (count, 1, 1))
    brightness = rng.uniform(0.25, 1.0, (count, 1, 1))

    step, lateral_step = 0.75, 0.5
    samples = max(3, int(np.ceil(length / step)))
    u = np.linspace(-1.0, 1.0, samples).reshape(1, -1, 1)
    fp16 = (width - 1) / 2
    lateral = np.linspace(-fp16, fp16, max(1, 1 + round(2 * fp16 / lateral_step))).reshape(1, 1, -1)
    sin, cos = np.sin(tilt), np.cos(tilt)
    along = u * share * length / 2
    x, y = x0 + along * sin + lateral * cos, y0 + along * cos - lateral * sin
    mass = brightness * share * (1 - u**4) * (length / samples) * (width / lateral.size)
    return np.minimum(_splat(x, y, np.broadcast_to(mass, x.shape), shape), 1)


def _splat(x: NDArray[np.float64], y: NDArray[np.float64], mass: NDArray[np.float64], shape: tuple[int, int]) -> Array:
    """Share each point's mass among its four nearest pixels, bilinearly; what falls outside is dropped. [H, W]."""
    x, y, mass = x.ravel(), y.ravel(), mass.ravel()
    height, width = shape
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y, mass = x[inside] + 1, y[inside] + 1, mass[inside]
    column, row = x.astype(np.int64), y.astype(np.int64)
    fx, fy = x - column, y - row
    field = np.zeros((height + 2) * (width + 2))
    corners = ((0, 0, (1 - fx) * (1 - fy)), (0, 1, fx * (1 - fy)), (1, 0, (1 - fx) * fy), (1, 1, fx * fy))
    for dy, dx, weight in corners:
        field += np.bincount((row + dy) * (width + 2) + column + dx, mass * weight, minlength=field.size)
    return field.reshape(height + 2, width + 2)[1:-1, 1:-1].astype(np.float32)
