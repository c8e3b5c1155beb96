"""Images on their way through a `Restorer`: prepared for the model, and restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from .image.read import DecodedImage

__all__ = ["PreparedImage", "Restoration", "Restored"]

Restored: TypeAlias = Image.Image | np.ndarray
"""A restored image: a Pillow image, or an array where an array was restored."""
RestoredT = TypeVar("RestoredT", bound=Restored, covariant=True)


@dataclass(frozen=True)
class Restoration(Generic[RestoredT]):
    """A restored image and what was decided about it.

    Attributes:
        image: the restored image.
        bypass_share: weight of the sharpened input in the result, in 0 to 1, the same at every pixel. At 0 the result
            is the output of the model; at 1 the image was only sharpened, as blurred and clean images are.
    """

    image: RestoredT
    bypass_share: float


@dataclass(frozen=True)
class PreparedImage:
    """An image that is ready to run.

    Attributes:
        decoded: the image as it was read.
        image: float32 `[3, H, W]` in [-1, 1]; the image lies in the middle, between reflected margins.
        crops: float32 `[K, 3, R, R]` in [-1, 1], None where the condition path needs none.
    """

    decoded: DecodedImage
    image: np.ndarray
    crops: np.ndarray | None

    def finish(self, restored: np.ndarray) -> Restored:
        """Cut the margins off a restored image and convert it to the form in which the image came.

        Args:
            restored: float32 `[3, H, W]` in [-1, 1], of the size of `image`.

        Returns:
            An array of the dtype and layout of the array that was read, or a Pillow image.
        """
        height, width = self.decoded.pixels.shape[:2]
        top, left = (restored.shape[1] - height) // 2, (restored.shape[2] - width) // 2
        return self.decoded.finish(restored[:, top : top + height, left : left + width].transpose(1, 2, 0))
