"""`dod-evaluate detail`: the window that is shown, and the figure it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.errors import run_command
from dod.evaluation.detail_figure import enlarge, main, most_detailed

SAMPLES = Path(__file__).parents[3] / "docs" / "samples" / "clean"


def test_the_window_with_the_most_detail_is_enlarged() -> None:
    image = np.full((40, 60, 3), 128, np.uint8)
    image[12:20, 30:38] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    rows, columns = most_detailed(image, 12)
    assert rows.start <= 12 and rows.stop >= 20 and columns.start <= 30 and columns.stop >= 38
    np.testing.assert_array_equal(enlarge(image, 3), image.repeat(3, 0).repeat(3, 1))


def test_command_writes_four_crops_of_each_photograph(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "detail.png"
    words = [str(SAMPLES), "--checkpoint", str(tiny_checkpoint), "--size", "64", "--window", "32", "--out", str(out)]
    assert run_command(main, [*words, "--limit", "2"]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as figure:
        assert figure.width > 4 * 64 and figure.height > 2 * 64
    assert run_command(main, [*words, "--window", "65"]) == 2
    assert "--window 65" in capsys.readouterr().err
