"""`dod-evaluate conditions` on real folders with a small model, compared with numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dod.checkpoint import save_checkpoint
from dod.data.degradations import DEGRADATIONS, noise, rng_for
from dod.errors import ConfigError, DataError, run_command
from dod.evaluation.conditions import condition_of, degraded_images, main, synthetic_images
from dod.evaluation.tsne import COLOURS, embed
from dod.model.dod import DOD
from dod.prototypes import standardise, statistics_of
from tests.dod.small_model import randomise, tiny

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "docs" / "samples" / "clean"
SIZE = 96


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs, one in a subfolder, larger than SIZE on one or both sides."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, box in (("haze", (0, 0, 130, 110)), ("rain", (100, 50, 220, 130)), ("noise", (60, 60, 170, 171))):
        path = folder / ("more" if name == "rain" else "") / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        with Image.open(SAMPLES / f"{name}.png") as image:
            image.convert("RGB").crop(box).save(path)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A tiny model calibrated on the photographs, so that some images are assigned correctly and some are not."""
    model = randomise(DOD.from_preset(tiny()))
    by_name: dict[str, list[torch.Tensor]] = {}
    for _, degradation, pixels in synthetic_images(photographs, DEGRADATIONS, SIZE, seed=5):
        by_name.setdefault(degradation, []).append(torch.from_numpy(condition_of(model, pixels)).float())
    model.prototypes = {name: torch.stack(c).mean(0) for name, c in by_name.items()}
    everything = torch.stack([c for each in by_name.values() for c in each])
    model.statistics = torch.from_numpy(statistics_of(everything.numpy())).float()
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_checkpoint(model, folder)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "dod.evaluation.conditions", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def run_here(*arguments: object) -> int:
    """Run the command in this process, which has imported torch already."""
    return run_command(main, list(map(str, arguments)))


def crop(path: Path, size: int) -> np.ndarray:
    """Return the centre of an image file, cropped by Pillow."""
    with Image.open(path) as image:
        left, top = max(0, (image.width - size) // 2), max(0, (image.height - size) // 2)
        right, bottom = min(image.width, left + size), min(image.height, top + size)
        return np.asarray(image.convert("RGB").crop((left, top, right, bottom)))


def test_images_are_the_degraded_centres(photographs: Path) -> None:
    made = list(synthetic_images(photographs, ["noise=25", "clean", "noise"], SIZE, seed=3, draws=2))
    assert [(name, degradation) for name, degradation, _ in made[:5]] == [
        ("haze", degradation) for degradation in ("noise=25", "noise=25", "clean", "noise", "noise")
    ]
    assert {name for name, _, _ in made} == {"haze", "more/rain", "noise"}
    clean = crop(photographs / "haze.png", SIZE).astype(np.float32) / np.float32(255)
    assert clean.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(made[2][2], clean)
    for k in range(2):
        np.testing.assert_array_equal(made[k][2], noise(clean, rng_for("haze", "noise", 3 + k), sigma=25)[0])
        np.testing.assert_array_equal(made[3 + k][2], noise(clean, rng_for("haze", "noise", 3 + k))[0])
    small = next(pixels for name, _, pixels in made if name == "more/rain")
    assert small.shape == (80, SIZE, 3)


@pytest.mark.slow
def test_command_agrees_with_numpy(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    done = run(photographs, "--checkpoint", checkpoint, "--size", SIZE, "--draws", 2, "--out", tmp_path / "new" / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "new" / "out" / "conditions.json").read_text())

    from dod.checkpoint import load_model

    model = load_model(checkpoint)
    assert model.statistics is not None
    statistics = model.statistics.double().numpy()
    prototypes = {k: standardise(v.double().numpy(), statistics) for k, v in model.prototypes.items()}
    expected = np.zeros((5, 5), int)
    names = []
    for name, degradation, pixels in synthetic_images(photographs, DEGRADATIONS, SIZE, seed=0, draws=2):
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] * 2 - 1
        with torch.no_grad():
            c = standardise(model.modulation(image)[0][0].double().numpy(), statistics)
        cosine = {k: c @ p / np.sqrt((c @ c) * (p @ p)) for k, p in prototypes.items()}
        names.append((name, degradation, max(cosine, key=lambda k: cosine[k]), 1 - max(cosine.values())))
        expected[DEGRADATIONS.index(degradation), DEGRADATIONS.index(names[-1][2])] += 1
    assert tuple(found["rows"]) == tuple(found["columns"]) == DEGRADATIONS
    assert found["counts"] == expected.tolist()
    assert 0 < expected.trace() < expected.sum() == 30  # neither all correct nor all wrong
    assert found["overall"] == pytest.approx(expected.trace() / 30)
    assert found["accuracy"]["rain"] == pytest.approx(expected[1, 1] / 6)
    for each, (name, degradation, nearest, distance) in zip(found["images"], names, strict=True):
        assert (each["image"], each["degradation"], each["nearest"]) == (name, degradation, nearest)
        assert each["distance"] == pytest.approx(distance, abs=1e-4)
    assert found["settings"] == {
        "checkpoint": str(checkpoint),
        "photographs": str(photographs),
        "seed": 0,
        "draws": 2,
        "size": SIZE,
    }
    printed = [line.split() for line in done.stdout.splitlines()]
    assert printed[2][0] == "haze" and list(map(int, printed[2][1:6])) == expected[0].tolist()
    assert printed[7][-2] == f"{100 * expected.trace() / 30:.1f}"
    with Image.open(tmp_path / "new" / "out" / "conditions.png") as source:
        assert source.format == "PNG" and max(source.size) > 1000  # the other side depends on t-SNE
        pixels = np.asarray(source.convert("RGB"), float)
    for name in DEGRADATIONS:
        colour = [255 - 0.85 * (255 - int(COLOURS[name][i : i + 2], 16)) for i in (1, 3, 5)]
        assert (abs(pixels - colour).max(axis=2) < 3).sum() > 200, f"{name} is not drawn"


def test_folder_of_degraded_images_gives_the_same(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that were degraded and saved give the same result when they are read with --degraded."""
    degradations = ("haze", "noise=50", "clean")
    for name, degradation, pixels in synthetic_images(photographs, degradations, SIZE, seed=0):
        path = tmp_path / "images" / degradation / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(path)
    common = ("--checkpoint", checkpoint, "--size", SIZE, "--no-figure", "--out")
    assert run_here(photographs, "--degradations", *degradations, *common, tmp_path / "made") == 0
    assert run_here("--degraded", tmp_path / "images", *common, tmp_path / "read") == 0
    of_made, of_read = (json.loads((tmp_path / n / "conditions.json").read_text()) for n in ("made", "read"))
    nearest, distances = (
        [{(p["image"], p["degradation"]): p[key] for p in each["images"]} for each in (of_made, of_read)]
        for key in ("nearest", "distance")
    )
    assert nearest[0] == nearest[1]
    assert distances[0] == pytest.approx(distances[1], abs=1e-9), "distances differ by more than the order of rows"
    assert of_read["rows"] == sorted(degradations) and of_read["accuracy"]["clean"] is None
    assert "clean" in capsys.readouterr().err
    assert not (tmp_path / "read" / "conditions.png").exists()


def test_model_without_prototypes_gets_the_figure_alone(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = "--model"
    assert run_here(photographs, former, "tiny", "--size", SIZE, "--out", tmp_path) == 0
    assert "dod-train calibrate" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["conditions.png"]


def test_what_is_missing_is_named(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat" / "haze").mkdir(parents=True)
    for arguments, words in (
        ((tmp_path / "nowhere",), "no such folder"),
        ((tmp_path / "empty",), "no images in"),
        (("--degraded", tmp_path / "empty"), "subfolders"),
        (("--degraded", tmp_path / "flat"), f"{tmp_path / 'flat' / 'haze'}"),
        ((photographs, "--degradations", "smoke"), "'smoke'"),
        ((photographs, "--degradations", "rain=3"), "'rain=3'"),
        ((photographs, "--size", "0"), "--size 0"),
        ((photographs, "--no-figure"), "dod-train calibrate"),
    ):
        assert run_here("--checkpoint", "tiny", *arguments, "--out", tmp_path / "out") == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0]
        assert not (tmp_path / "out").exists()


def test_few_or_equal_images_and_bad_levels(photographs: Path) -> None:
    with pytest.raises(DataError, match="4 images, not 3"):
        embed(np.eye(3))
    with pytest.raises(DataError, match="all 5 images"):
        embed(np.ones((5, 3)))
    with pytest.raises(ConfigError, match="noise=much"):
        next(synthetic_images(photographs, ["noise=much"], SIZE))
    with pytest.raises(DataError, match="nowhere"):
        next(degraded_images(photographs / "nowhere", SIZE))
