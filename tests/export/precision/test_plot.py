"""The plot of ranges and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from export.precision.plot import draw
from export.precision.record import PrecisionRecord


def test_the_plot_is_an_image(cured_record: PrecisionRecord, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(cured_record, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 1000
