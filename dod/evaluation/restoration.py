"""Restoration of images of any size by the PyTorch model, without tiling."""

from __future__ import annotations

import numpy as np
import torch

from dod.data.images import Pixels
from dod.model.dod import DOD
from dod.model.modulation import crop_indices

__all__ = ["restore_image"]


@torch.no_grad()
def restore_image(model: DOD, image: Pixels) -> Pixels:
    """Restore an image on the device of the model.

    The condition c comes from the native image. The networks see the image padded by reflection at the bottom and right
    to the preset's size multiple; the padding is cropped from the result.

    Args:
        model: the model.
        image: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    device = next(model.parameters()).device
    values = np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(np.float32) / np.float32(127.5) - 1
    native = torch.from_numpy(values).to(device)
    rows, columns = (_reflected(length, model.preset.size_multiple) for length in (height, width))
    restored = model(native[..., rows, :][..., columns], crops=model.crops(native))[0, :, :height, :width]
    pixels = ((restored.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def _reflected(length: int, multiple: int) -> list[int]:
    """Return the indices 0, 1, .., n-1, n-2, .. that extend an axis by reflection to a multiple."""
    return crop_indices(length, 1, -(-length // multiple) * multiple)[0]
