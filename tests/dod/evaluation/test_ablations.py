from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.errors import run_command
from dod.evaluation import ablations
from dod.evaluation.ablations import PLAIN, ROWS, Variant, as_markdown
from dod.evaluation.metrics import CORE, psnr
from dod.evaluation.restoration import restore_image
from dod.training import objectives
from tests.dod.data.small_tree import make_tree, save


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


def test_published_trees_are_trained_and_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablations, "ROWS", [row for row in ROWS if row.table == "Table 5"])
    tree, generator = make_tree(tmp_path / "data"), np.random.default_rng(0)
    for task, count in (("rain", 2), ("noise-25", 1)):
        for i in range(count):
            for kind in ("input", "truth"):
                save(tmp_path / kind / task / f"{i}.png", generator.integers(0, 256, (40, 57, 3), dtype=np.uint8))
    words = ["--data", str(tree), "--test", str(tmp_path / "input"), str(tmp_path / "truth"), "--preset", "tiny"]
    words += ["--setting", "rain-haze-noise", "--steps", "1", "1", "--batch", "1", "--crop", "32"]
    words += ["--learning-rates", "5e-5", "1e-4", "--out", str(tmp_path / "out")]
    assert run_command(ablations.main, words) == 0
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "ablations.json").read_text())
    row = next(row for row in data["rows"] if row["variant"]["conditional"] == "unet")

    # The same by hand: the mean over the tasks' means of what this model gives for images cropped to 32 x 48 px.
    arguments = ablations._parser().parse_args(words)
    models = []
    ablations.trained(Variant("unet", 8), arguments, lambda model: models.append(model) or {})
    tasks: dict[str, list[float]] = {"rain": [], "noise-25": []}
    for task, found in tasks.items():
        for path in sorted((tmp_path / "input" / task).iterdir()):
            degraded, truth = (
                np.asarray(Image.open(each))[4:36, 4:52] for each in (path, tmp_path / "truth" / task / path.name)
            )
            found.append(psnr(restore_image(models[-1], degraded), truth))
    assert row["psnr"] == pytest.approx(np.mean([np.mean(found) for found in tasks.values()]), abs=1e-3)
    assert f"{row['psnr']:.2f}" in printed and data["setting"]["learning_rates"] == [5e-5, 1e-4]

    monkeypatch.setattr(objectives.Adaptation, "forward", None)  # what is finished is not trained again
    assert run_command(ablations.main, words) == 0 and capsys.readouterr().out == printed


def test_the_tables_stand_against_their_first_line() -> None:
    def values(psnr: float, ssim: float) -> dict[str, float]:
        return {"psnr": psnr, "ssim": ssim}

    figures = {row.variant: {False: values(20.0, 0.5), True: values(25.0, 0.7)} for row in ROWS}
    figures[PLAIN] = {False: values(18.0, 0.4), True: values(24.5, 0.6)}
    figures[Variant("unet", 16)] = {False: values(20.0, 0.5), True: values(26.0, 0.7)}
    printed = as_markdown(figures, [CORE["ssim"]])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line]
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
