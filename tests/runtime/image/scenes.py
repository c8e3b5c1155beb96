"""Images and a stand-in for a network, shared by the tests of tiles and tone."""

from __future__ import annotations

import numpy as np

from dod_runtime.image.tone import reduce_image


def scene(height: int, width: int) -> np.ndarray:
    """Return an image whose tiles differ in brightness and contrast, with texture and an edge: float32 [1, 3, H, W]."""
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    texture = np.random.default_rng(0).standard_normal((3, height, width)) * (0.02 + 0.1 * columns)
    colors = np.array([0.9, 1, 1.1])[:, None, None] * (columns - 0.5 + 0.3 * np.cos(3 * rows))
    image = colors + texture + 0.3 * (rows + columns > 1.2)
    return np.clip(image, -1, 1)[None].astype(np.float32)


def normalize(images: np.ndarray) -> np.ndarray:
    """Normalize each image, as a network with instance normalization does: its tone depends on all of its input."""
    axes = (2, 3)
    return 0.4 * (images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True)


def reduced(images: np.ndarray, max_size: int) -> np.ndarray:
    """Reduce images to at most `max_size` pixels per side."""
    height, width = images.shape[2:]
    return reduce_image(images, min(height, max_size), min(width, max_size))


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the PSNR in dB of values in [-1, 1]."""
    return float(10 * np.log10(4 / np.square(found - expected).mean()))
