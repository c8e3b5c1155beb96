"""`dod-evaluate ablations`: variants, measurement, reuse of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.errors import run_command
from dod.evaluation import ablation_table, ablations
from dod.evaluation.ablation_table import ROWS, AblationVariant
from dod.evaluation.metrics import psnr
from dod.evaluation.restoration import restore_image
from dod.training import stage_objectives
from tests.dod.data.small_tree import make_tree, save


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{name}.png")
    return tmp_path / "photographs"


@pytest.mark.slow
def test_every_variant_is_trained_once_and_every_row_measured(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablations"
    words = [
        "--photographs",
        str(photographs),
        "--held-out",
        str(photographs),
        "--checkpoint",
        "tiny",
        "--out",
        str(out),
    ]
    assert (
        run_command(ablations.main, [*words, "--steps", "2", "2", "--batch-size", "1", "--crop", "32", "--size", "32"])
        == 0
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
    assert len(set(variants.values())) == 6, "two variants are the same model"
    printed = capsys.readouterr().out
    assert all(f"Table {number}" in printed for number in (4, 5, 6))
    assert len(list((out / "state").iterdir())) == 6


def test_published_trees_are_trained_and_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (ablations, ablation_table):
        monkeypatch.setattr(module, "ROWS", [row for row in ROWS if row.table == "Table 5"])
    tree, generator = make_tree(tmp_path / "data"), np.random.default_rng(0)
    for degradation, count in (("rain", 2), ("noise-25", 1)):
        for i in range(count):
            for role in ("input", "truth"):
                save(
                    tmp_path / role / degradation / f"{i}.png", generator.integers(0, 256, (40, 57, 3), dtype=np.uint8)
                )
    words = ["--data", str(tree), "--test", str(tmp_path / "input"), str(tmp_path / "truth"), "--checkpoint", "tiny"]
    words += ["--setting", "rain-haze-noise", "--steps", "1", "1", "--batch-size", "1", "--crop", "32"]
    words += ["--learning-rates", "5e-5", "1e-4", "--out", str(tmp_path / "out")]
    assert run_command(ablations.main, words) == 0
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "ablations.json").read_text())
    row = next(row for row in data["rows"] if row["variant"]["conditional"] == "unet")

    # Computed by hand: the mean over degradations of their mean PSNR, of images cropped to 32 x 48 px.
    arguments = ablations.parser().parse_args(words)
    models = []
    ablations.train_and_measure(AblationVariant("unet", 8), arguments, lambda model: models.append(model) or {})
    degradations: dict[str, list[float]] = {"rain": [], "noise-25": []}
    for degradation, found in degradations.items():
        for path in sorted((tmp_path / "input" / degradation).iterdir()):
            degraded, truth = (
                np.asarray(Image.open(each))[4:36, 4:52]
                for each in (path, tmp_path / "truth" / degradation / path.name)
            )
            found.append(psnr(restore_image(models[-1], degraded), truth))
    assert row["psnr"] == pytest.approx(np.mean([np.mean(found) for found in degradations.values()]), abs=1e-3)
    assert f"{row['psnr']:.2f}" in printed and data["setting"]["learning_rates"] == [5e-5, 1e-4]

    monkeypatch.setattr(stage_objectives.AdaptationObjective, "forward", None)  # finished runs are reused
    assert run_command(ablations.main, words) == 0 and capsys.readouterr().out == printed


def test_what_cannot_be_measured(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--photographs", str(photographs), "--held-out", str(photographs), "--checkpoint", "tiny"]
    assert run_command(ablations.main, [*words, "--crop", "32", "--size", "64"]) == 2
    assert "--size 64" in capsys.readouterr().err
    assert run_command(ablations.main, [*words, "--crop", "30"]) == 2
    assert "--crop 30" in capsys.readouterr().err
