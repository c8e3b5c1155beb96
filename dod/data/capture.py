"""Softness, sensor noise and JPEG: what resizing, optics and a camera's own processing lay over any image.

Photographs at camera resolution are seldom sharp to the pixel. A model that is trained on sharp images alone takes a
soft degraded image for a merely blurred one, so training lays a `Capture` over every degradation and over clean images.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["SHARP", "Capture", "gaussian_blur", "jpeg", "random_capture", "record", "resize", "soften"]

Array = NDArray[np.float32]

_ENLARGING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.HAMMING)
_REDUCING = (*_ENLARGING, Image.Resampling.BOX)


@dataclass(frozen=True)
class Capture:
    """How an image reaches its file. The first three soften it, the last two are laid over the softened image.

    scale: factor of the resize; kernel: its filter. blur: standard deviation in px of a Gaussian. noise: standard
    deviation of sensor noise in uint8 levels. quality: of JPEG, None for no compression. subsampled: whether JPEG
    halves the resolution of colour (4:2:0).
    """

    scale: float = 1.0
    kernel: Image.Resampling = Image.Resampling.BICUBIC
    blur: float = 0.0
    noise: float = 0.0
    quality: int | None = None
    subsampled: bool = True


SHARP = Capture()
"""The capture that changes nothing."""


def random_capture(rng: np.random.Generator) -> Capture:
    """Draw a capture: each of its four parts is present half of the time, JPEG a third of it.

    Resized 0.5 to 3 x, log-uniform, with one of several kernels; blurred by sigma 0.3 to 2 px; sensor noise of 0.5 to 4
    levels, log-uniform; JPEG of quality 60 to 95.
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


def soften(image: Array, capture: Capture, size: tuple[int, int] | None = None) -> Array:
    """Resize and blur an image, float32 [H, W, 3] in 0 to 1, not rounded to uint8 levels.

    size: (height, width) in px of the result; by default that of the image times `capture.scale`.
    """
    height, width = image.shape[:2]
    size = size or (max(1, round(height * capture.scale)), max(1, round(width * capture.scale)))
    return np.clip(gaussian_blur(resize(image, size, capture.kernel), capture.blur), 0, 1)


def record(image: Array, capture: Capture, rng: np.random.Generator) -> Array:
    """Lay sensor noise and JPEG over an image, float32 [H, W, 3] in 0 to 1; the result lies on uint8 levels k/255."""
    if capture.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + (np.float32(capture.noise / 255) * noise).astype(np.float32)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if capture.quality is not None:
        pixels = jpeg(pixels, capture.quality, capture.subsampled)
    return pixels.astype(np.float32) / np.float32(255)


def resize(image: Array, size: tuple[int, int], kernel: Image.Resampling) -> Array:
    """Resize float32 [H, W, 3] to `size` = (height, width) px with an antialiasing kernel, which may overshoot."""
    if image.shape[:2] == size:
        return image
    planes = [Image.fromarray(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])]
    resized = [np.asarray(plane.resize((size[1], size[0]), kernel), np.float32) for plane in planes]
    return np.stack(resized, axis=-1)


def gaussian_blur(image: Array, sigma: float) -> Array:
    """Convolve [H, W, 3] with a Gaussian of `sigma` px, borders reflected without repeating the edge."""
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


def jpeg(pixels: NDArray[np.uint8], quality: int, subsampled: bool = True) -> NDArray[np.uint8]:
    """Encode uint8 [H, W, 3] as JPEG and decode it again. subsampled: 4:2:0, else 4:4:4."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2 if subsampled else 0)
    return np.asarray(Image.open(file))
