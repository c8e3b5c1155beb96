"""`benchmarks/tiles.py`: steps across borders, and the command on a toy bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.tiles import border_steps, main
from dod_runtime.errors import UsageError
from tests.runtime.toy_bundle import write_toy_bundle


def test_steps_are_measured_at_flat_borders() -> None:
    whole = np.full((256, 160, 3), 100, np.uint8)
    whole[:, 128:] = np.random.default_rng(0).integers(0, 256, (256, 32, 3))
    tiled = whole.astype(float)
    tiled[128:, :64] += 3  # tiles of 144 px overlap: no border is here
    assert not border_steps(tiled, whole, 144).any()
    tiled = whole.astype(float)
    tiled[112:, :64] += 3  # the second tile of 144 px starts here
    steps = border_steps(tiled, whole, 144)
    np.testing.assert_allclose(steps[steps > 0], [3, 3])
    assert len(steps) == 2 * 4 + 8  # two borders across four flat strips, and one down eight; the last is not flat


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_toy_bundle(tmp_path / "toy")
    (tmp_path / "clean").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clean" / "a.png")
    common = [
        "--bundle",
        str(bundle),
        "--photographs",
        str(tmp_path / "clean"),
        "--condition",
        "haze",
        "--num-threads",
        "1",
    ]
    assert main([*common, "--size", "128", "96", "--tile-size", "64", "128"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines if line[:1] == ["low-light"]] == [["low-light", "64", "1"]]  # 128 px is whole
    with pytest.raises(UsageError, match="--size 256 96.* 128 .*--whole"):
        main([*common, "--size", "256", "96"])
    assert main([*common, "--size", "128", "96", "--tile-size", "64", "--time", "1"]) == 0
    assert "in tiles of 64" in capsys.readouterr().out
