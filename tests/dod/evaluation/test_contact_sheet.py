"""Contact sheets show images at native resolution."""

from __future__ import annotations

import numpy as np

from dod.evaluation.contact_sheet import SheetEntry, contact_sheet


def test_images_are_shown_at_native_resolution() -> None:
    images = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8) for i in range(3)]
    sheet = np.asarray(contact_sheet([SheetEntry("one", images), SheetEntry("two", images)], per_line=1, side=32))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (32, 32, 3))[:, :, 0]
    middle = images[1][4:36, 14:46]
    corners = windows[:, :, 0, 0] == middle[0, 0]
    found = [at for at in np.argwhere(corners.all(-1)) if (windows[tuple(at)] == middle).all()]
    assert len(found) == 2 and found[0][1] == found[1][1]
