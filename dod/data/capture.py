"""Softness, sensor noise and JPEG compression: the marks that resizing, optics and a camera leave on any photograph.

Photographs at camera resolution are rarely sharp at pixel level. A model trained on sharp images alone mistakes soft,
degraded images for blurred ones. Training therefore applies a `Capture` to degraded and clean samples alike.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dod.data.images import FloatImage, Pixels

__all__ = ["SHARP", "Capture", "gaussian_blur", "jpeg", "random_capture", "record", "resize", "soften"]

_ENLARGING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.HAMMING)
_REDUCING = (*_ENLARGING, Image.Resampling.BOX)


@dataclass(frozen=True)
class Capture:
    """Parameters of a simulated camera pipeline: resizing and blur soften the image, then noise and JPEG are added.

    Attributes:
        scale: factor of the resize.
        kernel: Pillow's resampling filter of the resize.
        blur: standard deviation of a Gaussian blur in px; 0 for none.
        noise: standard deviation of the sensor noise in uint8 levels; 0 for none.
        quality: JPEG quality, or None for no compression.
        subsampled: JPEG stores color at half the resolution (4:2:0).
    """

    scale: float = 1.0
    kernel: Image.Resampling = Image.Resampling.BICUBIC
    blur: float = 0.0
    noise: float = 0.0
    quality: int | None = None
    subsampled: bool = True


SHARP = Capture()
"""The capture that leaves an image unchanged."""


def random_capture(rng: np.random.Generator) -> Capture:
    """Draw a random capture.

    Resizing, blur and noise are each present with probability 1/2, JPEG with probability 1/3. Ranges: scale 0.5 to 3
    (log-uniform), blur 0.3 to 2 px, noise 0.5 to 4 levels (log-uniform), JPEG quality 60 to 95.

    Args:
        rng: source of randomness.

    Returns:
        The capture.
    """
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(3.0))))
    kernels = _ENLARGING if scale > 1 else _REDUCING
    kernel = kernels[rng.integers(len(kernels))]
    blur, noise = float(rng.uniform(0.3, 2.0)), float(np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
    quality, subsampled = int(rng.integers(60, 96)), bool(rng.random() < 0.7)
    resized, blurred, noisy, compressed = rng.random(4) < (0.5, 0.5, 0.5, 1 / 3)
    return Capture(
        scale if resized else 1.0,
        kernel,
        blur if blurred else 0.0,
        noise if noisy else 0.0,
        quality if compressed else None,
        subsampled,
    )


def soften(image: FloatImage, capture: Capture, size: tuple[int, int] | None = None) -> FloatImage:
    """Resize and blur an image, without rounding to uint8 levels.

    Args:
        image: float32 [H, W, 3] in 0 to 1.
        capture: `scale`, `kernel` and `blur` are applied.
        size: (height, width) of the result in px; by default the size of `image` times `capture.scale`.

    Returns:
        float32 [H', W', 3] in 0 to 1.
    """
    height, width = image.shape[:2]
    size = size or (max(1, round(height * capture.scale)), max(1, round(width * capture.scale)))
    return np.clip(gaussian_blur(resize(image, size, capture.kernel), capture.blur), 0, 1)


def record(image: FloatImage, capture: Capture, rng: np.random.Generator) -> FloatImage:
    """Add the sensor noise and JPEG artifacts of a capture to an image.

    Args:
        image: float32 [H, W, 3] in 0 to 1.
        capture: `noise`, `quality` and `subsampled` are applied.
        rng: source of the noise.

    Returns:
        float32 [H, W, 3], rounded to uint8 levels k/255.
    """
    if capture.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + (np.float32(capture.noise / 255) * noise).astype(np.float32)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if capture.quality is not None:
        pixels = jpeg(pixels, capture.quality, capture.subsampled)
    return pixels.astype(np.float32) / np.float32(255)


def resize(image: FloatImage, size: tuple[int, int], kernel: Image.Resampling) -> FloatImage:
    """Resize an image with antialiasing. Kernels such as Lanczos may overshoot 0 to 1.

    Args:
        image: float32 [H, W, 3].
        size: (height, width) of the result in px.
        kernel: Pillow's resampling filter.

    Returns:
        float32 [*size, 3].
    """
    if image.shape[:2] == size:
        return image
    planes = [Image.fromarray(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])]
    resized = [np.asarray(plane.resize((size[1], size[0]), kernel), np.float32) for plane in planes]
    return np.stack(resized, axis=-1)


def gaussian_blur(image: FloatImage, sigma: float) -> FloatImage:
    """Convolve an image with a Gaussian, with reflected borders that do not repeat the edge pixel.

    Args:
        image: float32 [H, W, 3].
        sigma: standard deviation in px; 0 returns the image itself.

    Returns:
        float32 [H, W, 3].
    """
    if sigma <= 0:
        return image
    reach = min(int(np.ceil(3 * sigma)), min(image.shape[:2]) - 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis, length in enumerate(image.shape[:2]):
        padded = np.pad(image, [(reach, reach) if each == axis else (0, 0) for each in range(3)], mode="reflect")
        shifted = (np.take(padded, range(i, i + length), axis) for i in range(len(taps)))
        weighted = [tap * part for tap, part in zip(taps, shifted, strict=True)]
        image = np.asarray(np.sum(weighted, axis=0, dtype=np.float32))
    return image


def jpeg(pixels: Pixels, quality: int, subsampled: bool = True) -> Pixels:
    """Compress an image as JPEG and decode it.

    Args:
        pixels: uint8 [H, W, 3].
        quality: JPEG quality, 1 to 95.
        subsampled: use 4:2:0 chroma subsampling instead of 4:4:4.

    Returns:
        uint8 [H, W, 3].
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2 if subsampled else 0)
    return np.asarray(Image.open(file))
