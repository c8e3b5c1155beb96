"""A sheet of images to look at: what came in, what came out, what it should be, at their own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dod.data.images import centre_crop

__all__ = ["Entry", "contact_sheet"]

SIDE = 224
GAP = 6
CAPTION = 20
PAPER, INK = (250, 250, 250), (30, 30, 30)


@dataclass(frozen=True)
class Entry:
    """Images of one scene, uint8 [H, W, 3] each, that stand side by side under one caption."""

    caption: str
    images: Sequence[NDArray[np.uint8]]


def contact_sheet(entries: Sequence[Entry], per_line: int, side: int = SIDE) -> Image.Image:
    """Entries in lines of `per_line`, read like a text; the middle `side` pixels of each image, never resized.

    All entries must have the same number of images, at least one.
    """
    count = len(entries[0].images)
    side = min(side, max(max(pixels.shape[:2]) for entry in entries for pixels in entry.images))
    width = count * (side + 1) + GAP
    height = CAPTION + side + GAP
    lines = -(-len(entries) // per_line)
    sheet = Image.new("RGB", (min(per_line, len(entries)) * width + GAP, lines * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, entry in enumerate(entries):
        left, top = GAP + i % per_line * width, GAP + i // per_line * height
        draw.text((left, top), entry.caption, INK, font)
        for k, pixels in enumerate(entry.images):
            image = Image.fromarray(np.ascontiguousarray(centre_crop(pixels, side)))
            offset = ((side - image.width) // 2, (side - image.height) // 2)
            sheet.paste(image, (left + k * (side + 1) + offset[0], top + CAPTION + offset[1]))
    return sheet
