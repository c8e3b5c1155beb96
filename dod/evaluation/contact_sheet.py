"""Contact sheet: input, output and clean version of images next to each other, at native resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dod.data.images import Pixels, centre_crop

__all__ = ["SheetEntry", "contact_sheet"]

SIDE = 224
"""Maximum side of an image in px."""
GAP = 6
"""Space between rows and columns in px."""
CAPTION = 20
"""Height of a caption in px."""
BACKGROUND, INK = (250, 250, 250), (30, 30, 30)


@dataclass(frozen=True)
class SheetEntry:
    """Images of one scene, which are drawn next to each other under a caption.

    Attributes:
        caption: the caption.
        images: uint8 [H, W, 3] each.
    """

    caption: str
    images: Sequence[Pixels]


def contact_sheet(entries: Sequence[SheetEntry], per_line: int, side: int = SIDE) -> Image.Image:
    """Draw a contact sheet, row by row. Images are cropped to their center and never resized.

    Args:
        entries: at least one entry, all with the same number of images.
        per_line: entries per row.
        side: maximum side of an image in px.

    Returns:
        The sheet.
    """
    count = len(entries[0].images)
    side = min(side, max(max(pixels.shape[:2]) for entry in entries for pixels in entry.images))
    width = count * (side + 1) + GAP
    height = CAPTION + side + GAP
    lines = -(-len(entries) // per_line)
    sheet = Image.new("RGB", (min(per_line, len(entries)) * width + GAP, lines * height + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, entry in enumerate(entries):
        left, top = GAP + i % per_line * width, GAP + i // per_line * height
        draw.text((left, top), entry.caption, INK, font)
        for k, pixels in enumerate(entry.images):
            image = Image.fromarray(np.ascontiguousarray(centre_crop(pixels, side)))
            offset = ((side - image.width) // 2, (side - image.height) // 2)
            sheet.paste(image, (left + k * (side + 1) + offset[0], top + CAPTION + offset[1]))
    return sheet
