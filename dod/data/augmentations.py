"""Random changes of a clean training crop: orientation, colors, mist. They are part of the scene, not degradations."""

from __future__ import annotations

import numpy as np

from dod.data.degradations import depth_map
from dod.data.images import FloatImage, Pixels

__all__ = ["add_mist", "jitter_colors", "random_orientation"]


def random_orientation(rng: np.random.Generator, *windows: Pixels) -> list[FloatImage]:
    """Rotate and mirror square windows, all in the same of the eight possible ways.

    Args:
        rng: source of the orientation.
        *windows: uint8 [N, N, 3].

    Returns:
        The windows as float32 [N, N, 3] in 0 to 1.
    """
    quarters, mirrored = int(rng.integers(4)), rng.random() < 0.5
    oriented = [np.rot90(window, quarters)[:, :: -1 if mirrored else 1] for window in windows]
    return [np.ascontiguousarray(window, dtype=np.float32) / np.float32(255) for window in oriented]


def jitter_colors(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Change the colors of an image: permute channels, change white balance and saturation.

    White balance is 0.8 to 1.2 for each channel. The distance from gray is multiplied by 0.5 to 2.2.

    Args:
        image: float32 [H, W, 3] in 0 to 1.
        rng: source of randomness.

    Returns:
        float32 [H, W, 3], clipped to 0 to 1.
    """
    other = image[..., rng.permutation(3)] * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    gray = other.mean(axis=2, keepdims=True)
    return np.clip(gray + np.float32(rng.uniform(0.5, 2.2)) * (other - gray), 0, 1, dtype=np.float32)


def add_mist(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Add aerial perspective that a restoration must preserve: distant parts lie in mist, near ones do not.

    The model is that of `dod.data.degradations.haze`, with differences that tell this mist from haze. The nearest 30 to
    70 % of the depth range is clear. The airlight (brightest channel 0.5 to 0.95) is bluish with probability 3/4,
    otherwise reddish; the opposite end of the spectrum is 5 to 35 % darker. beta is 0.5 to 3.

    Args:
        image: float32 [H, W, 3] in 0 to 1.
        rng: source of randomness.

    Returns:
        float32 [H, W, 3] in 0 to 1.
    """
    near, beta, airlight = rng.uniform(0.3, 0.7), rng.uniform(0.5, 3), rng.uniform(0.5, 0.95)
    cast = rng.uniform(0.05, 0.35)
    color = airlight * np.array([1 - cast, 1 - cast / 2, 1])[:: 1 if rng.random() < 0.75 else -1]
    far = np.clip((depth_map(image.shape[:2], rng) - near) / (1 - near), 0, 1)
    transmission = np.exp(-beta * far)[..., None]
    return (image * transmission + color * (1 - transmission)).astype(np.float32)
