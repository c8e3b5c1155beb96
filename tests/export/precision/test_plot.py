"""The plot of ranges and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dod.model.dod import DOD
from export.precision.plot import draw
from export.precision.record import calibrate


def test_the_plot_is_an_image(planted: DOD, paths: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record = json.loads(json.dumps(calibrate(planted, paths, None, print)))
    draw(record, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 1000
