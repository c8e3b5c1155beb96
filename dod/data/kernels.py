"""Point spread functions of blur and the streaks of rain, drawn with anti-aliased lines and discs. Needs numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dod.data.images import FloatImage
from dod.errors import DataError

__all__ = ["convolve", "defocus_kernel", "motion_kernel", "random_kernel", "streaks"]

Kernel = NDArray[np.float32]


def motion_kernel(length: float, angle: float, bend: float = 0.0) -> Kernel:
    """Return the blur kernel of a camera that moves along an arc while the shutter is open.

    Args:
        length: chord of the arc in px.
        angle: direction of the chord in degrees, counter-clockwise from the horizontal.
        bend: height of the arc above its chord as a fraction of `length`; 0 for a straight line.

    Returns:
        float32 [k, k], k odd, sum 1, centroid at the center.
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


def defocus_kernel(radius: float) -> Kernel:
    """Return the blur kernel of an unfocused lens: an anti-aliased disc.

    Args:
        radius: radius of the disc in px.

    Returns:
        float32 [k, k], k odd, sum 1.
    """
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def random_kernel(rng: np.random.Generator) -> Kernel:
    """Draw a blur kernel: motion blur with probability 2/3, otherwise defocus.

    Motion is 5 to 21 px long and straight or slightly curved; the radius of defocus is 1.2 to 4 px.

    Args:
        rng: source of randomness.

    Returns:
        float32 [k, k], k odd, sum 1.
    """
    length, angle, bend = rng.uniform(5, 21), rng.uniform(0, 180), rng.uniform(-0.25, 0.25)
    curved, radius = rng.random() < 0.5, rng.uniform(1.2, 4)
    if rng.random() < 1 / 3:
        return defocus_kernel(radius)
    return motion_kernel(length, angle, bend if curved else 0.0)


def convolve(image: FloatImage, kernel: Kernel) -> FloatImage:
    """Convolve an image with a kernel (true convolution), with reflected borders that do not repeat the edge pixel.

    The result is a sum of shifted copies, one for each nonzero tap: small kernels need neither an FFT nor scipy.

    Args:
        image: float32 [H, W, 3].
        kernel: float32 [k, k].

    Returns:
        float32 [H, W, 3].

    Raises:
        DataError: the kernel is not square with an odd side, and would shift the image.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise DataError(f"a blur kernel must be square with an odd side, got shape {list(kernel.shape)}")
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
) -> NDArray[np.float32]:
    """Draw falling drops: sparse points with motion blur at sub-pixel angles.

    Each streak has its own length, its own brightness, and a direction within 2 degrees of the common one.

    Args:
        shape: (height, width) in px.
        rng: source of randomness.
        angle: direction in degrees from the vertical.
        length: length of the longest streaks in px.
        width: width of the streaks in px.
        density: streaks per 1,000 px of area.

    Returns:
        float32 [H, W] in 0 to 1.
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
    half_width = (width - 1) / 2
    lateral = np.linspace(-half_width, half_width, max(1, 1 + round(2 * half_width / lateral_step))).reshape(1, 1, -1)
    sin, cos = np.sin(tilt), np.cos(tilt)
    along = u * share * length / 2
    x, y = x0 + along * sin + lateral * cos, y0 + along * cos - lateral * sin
    mass = brightness * share * (1 - u**4) * (length / samples) * (width / lateral.size)
    return np.minimum(_splat(x, y, np.broadcast_to(mass, x.shape), shape), 1)


def _splat(
    x: NDArray[np.float64], y: NDArray[np.float64], mass: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Distribute the mass of each point bilinearly over its four nearest pixels [H, W]; points outside are dropped."""
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
