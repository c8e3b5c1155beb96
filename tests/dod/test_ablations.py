from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.errors import run_command
from dod.training import ablations
from dod.training.ablations import PLAIN, ROWS, Variant, as_markdown


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{name}.png")
    return tmp_path / "photographs"


def test_every_variant_is_trained_once_and_every_row_measured(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablations"
    words = ["--photographs", str(photographs), "--held-out", str(photographs), "--preset", "tiny", "--out", str(out)]
    assert (
        run_command(ablations.main, [*words, "--steps", "2", "2", "--batch", "1", "--crop", "32", "--size", "32"]) == 0
    )
    data = json.loads((out / "ablations.json").read_text())
    assert len(data["rows"]) == len(ROWS) == 11 and data["setting"]["steps"] == [2, 2]
    variants = {tuple(row["variant"].values()): row["psnr"] for row in data["rows"] if row["detail"]}
    assert variants.keys() == {
        ("none", 8, 1),
        ("unet", 8, 1),
        ("unet+encoder", 8, 1),
        ("unet", 4, 1),
        ("unet", 16, 1),
        ("unet", 8, 2),
    }
    assert len(set(variants.values())) == 6, "each variant is another model"
    printed = capsys.readouterr().out
    assert all(f"Table {number}" in printed for number in (4, 5, 6))
    assert len(list((out / "state").iterdir())) == 6


def test_the_tables_stand_against_their_first_line() -> None:
    figures = {variant: {False: (20.0, 0.5), True: (25.0, 0.7)} for variant in {row.variant for row in ROWS}}
    figures[PLAIN] = {False: (18.0, 0.4), True: (24.5, 0.6)}
    figures[Variant("unet", 16)] = {False: (20.0, 0.5), True: (26.0, 0.7)}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in as_markdown(figures).splitlines() if line]
    found = {line[0]: line[1:] for line in lines}
    assert found["CLoRA and DEM"] == ["25.00", "+7.00", "0.7000", "31.87", "+8.82"]
    assert found["DEM"] == ["24.50", "+6.50", "0.6000", "31.83", "+8.78"]
    assert found["CLoRA in the UNet only"] == ["25.00", "+0.00", "0.7000", "31.87", "+1.19"]
    assert found["rank 4"][3:] == ["collapses", "-"] and found["rank 16"][:2] == ["26.00", "+1.00"]


def test_what_cannot_be_measured(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--photographs", str(photographs), "--held-out", str(photographs), "--preset", "tiny"]
    assert run_command(ablations.main, [*words, "--crop", "32", "--size", "64"]) == 2
    assert "a.png is smaller than --size 64" in capsys.readouterr().err
    assert run_command(ablations.main, [*words, "--crop", "30"]) == 2
    assert "--crop 30: the model takes multiples of 16" in capsys.readouterr().err
