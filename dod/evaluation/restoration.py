"""An image of any size through the PyTorch model, whole, padded to the preset's size multiple alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dod.model.dod import DOD
from dod.model.modulation import crop_indices

__all__ = ["restore_image"]


@torch.no_grad()
def restore_image(model: DOD, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> the restored image, uint8 [H, W, 3]. The model runs where its parameters are.

    The condition comes from the native image; what encoder, UNet and decoder see is extended by reflection at the
    bottom and at the right to the preset's size multiple, and cropped back.
    """
    height, width = image.shape[:2]
    device = next(model.parameters()).device
    values = np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(np.float32) / np.float32(127.5) - 1
    native = torch.from_numpy(values).to(device)
    rows, columns = (_extended(length, model.preset.size_multiple) for length in (height, width))
    restored = model(native[..., rows, :][..., columns], crops=model.crops(native))[0, :, :height, :width]
    pixels = ((restored.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def _extended(length: int, multiple: int) -> list[int]:
    """Indices 0, 1, .., n-1, n-2, ..: an axis extended by reflection to a multiple."""
    return crop_indices(length, 1, -(-length // multiple) * multiple)[0]
