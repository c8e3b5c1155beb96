"""The confusion table against numpy by hand, and `dod.evaluation.conditions` on real folders with a small model."""

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
from dod.evaluation.confusion import Confusion, Named, confusion, report
from dod.evaluation.tsne import COLOURS, draw, embed
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
    """A tiny model calibrated on the photographs themselves, so that the table has right answers, and not only them."""
    model = randomise(DOD.from_preset(tiny()))
    by_name: dict[str, list[torch.Tensor]] = {}
    for _, label, pixels in synthetic_images(photographs, DEGRADATIONS, SIZE, seed=5):
        by_name.setdefault(label, []).append(torch.from_numpy(condition_of(model, pixels)).float())
    model.prototypes = {name: torch.stack(c).mean(0) for name, c in by_name.items()}
    everything = torch.stack([c for each in by_name.values() for c in each])
    model.statistics = torch.from_numpy(statistics_of(everything.numpy())).float()
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_checkpoint(model, folder)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "dod.evaluation.conditions", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def run_here(*arguments: object) -> int:
    """The same in this process, which has imported torch already."""
    return run_command(main, list(map(str, arguments)))


def crop(path: Path, size: int) -> np.ndarray:
    """The middle of an image file, cut by Pillow."""
    with Image.open(path) as image:
        left, top = max(0, (image.width - size) // 2), max(0, (image.height - size) // 2)
        right, bottom = min(image.width, left + size), min(image.height, top + size)
        return np.asarray(image.convert("RGB").crop((left, top, right, bottom)))


def test_table_counts_and_accuracy() -> None:
    found = [Named("a", "rain", "rain", 0.1), Named("b", "rain", "haze", 0.2), Named("a", "noise=25", "noise", 0.3)]
    found += [Named("c", "rain", "rain", 0.1), Named("d", "snow", "haze", 0.4)]
    result = confusion(found, ("haze", "rain", "noise"))
    assert result == Confusion(
        ("rain", "noise=25", "snow"), ("haze", "rain", "noise"), ((1, 2, 0), (0, 0, 1), (1, 0, 0))
    )
    assert result.accuracy("rain") == pytest.approx(2 / 3) and result.accuracy("noise=25") == 1
    assert result.accuracy("snow") is None and result.strangers == ("snow",)
    assert result.accuracy() == pytest.approx(3 / 4)  # snow has no prototype that would be right
    lines = [line.split() for line in report(result).splitlines()]
    assert lines[1:] == [
        ["rain", "1", "2", "0", "66.7", "%"],
        ["noise=25", "0", "0", "1", "100.0", "%"],
        ["snow", "1", "0", "0", "-"],
        ["all", "2", "2", "1", "75.0", "%"],
    ]


def test_images_are_the_degraded_middles(photographs: Path) -> None:
    made = list(synthetic_images(photographs, ["noise=25", "clean", "noise"], SIZE, seed=3, draws=2))
    assert [(name, label) for name, label, _ in made[:5]] == [
        ("haze", label) for label in ("noise=25", "noise=25", "clean", "noise", "noise")
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


def test_command_agrees_with_numpy(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    done = run(photographs, "--model", checkpoint, "--size", SIZE, "--draws", 2, "--out", tmp_path / "new" / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "new" / "out" / "conditions.json").read_text())

    from dod.checkpoint import load_model

    model = load_model(checkpoint)
    assert model.statistics is not None
    statistics = model.statistics.double().numpy()
    prototypes = {k: standardise(v.double().numpy(), statistics) for k, v in model.prototypes.items()}
    expected = np.zeros((5, 5), int)
    names = []
    for name, label, pixels in synthetic_images(photographs, DEGRADATIONS, SIZE, seed=0, draws=2):
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] * 2 - 1
        with torch.no_grad():
            c = standardise(model.modulation(image)[0][0].double().numpy(), statistics)
        cosine = {k: c @ p / np.sqrt((c @ c) * (p @ p)) for k, p in prototypes.items()}
        names.append((name, label, max(cosine, key=lambda k: cosine[k]), 1 - max(cosine.values())))
        expected[DEGRADATIONS.index(label), DEGRADATIONS.index(names[-1][2])] += 1
    assert tuple(found["rows"]) == tuple(found["columns"]) == DEGRADATIONS
    assert found["counts"] == expected.tolist()
    assert 0 < expected.trace() < expected.sum() == 30  # neither all right nor all wrong: the table tells something
    assert found["overall"] == pytest.approx(expected.trace() / 30)
    assert found["accuracy"]["rain"] == pytest.approx(expected[1, 1] / 6)
    for each, (name, label, nearest, distance) in zip(found["images"], names, strict=True):
        assert (each["image"], each["label"], each["nearest"]) == (name, label, nearest)
        assert each["distance"] == pytest.approx(distance, abs=1e-4)
    assert found["settings"] == {
        "model": str(checkpoint),
        "photographs": str(photographs),
        "seed": 0,
        "draws": 2,
        "size": SIZE,
    }
    printed = [line.split() for line in done.stdout.splitlines()]
    assert printed[1][0] == "haze" and list(map(int, printed[1][1:6])) == expected[0].tolist()
    assert printed[6][-2] == f"{100 * expected.trace() / 30:.1f}"
    with Image.open(tmp_path / "new" / "out" / "conditions.png") as source:
        assert source.format == "PNG" and max(source.size) > 1000  # the other side is as t-SNE spreads the points
        pixels = np.asarray(source.convert("RGB"), float)
    for name in DEGRADATIONS:
        colour = [255 - 0.85 * (255 - int(COLOURS[name][i : i + 2], 16)) for i in (1, 3, 5)]
        assert (abs(pixels - colour).max(axis=2) < 3).sum() > 200, f"{name} is not drawn"


def test_folder_of_degraded_images_gives_the_same(
    checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was degraded here and saved, read back with --degraded, is named the same."""
    labels = ("haze", "noise=50", "clean")
    for name, label, pixels in synthetic_images(photographs, labels, SIZE, seed=0):
        path = tmp_path / "images" / label / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(path)
    common = ("--model", checkpoint, "--size", SIZE, "--no-figure", "--out")
    assert run_here(photographs, "--degradations", *labels, *common, tmp_path / "made") == 0
    assert run_here("--degraded", tmp_path / "images", *common, tmp_path / "read") == 0
    of_made, of_read = (json.loads((tmp_path / n / "conditions.json").read_text()) for n in ("made", "read"))
    nearest, distances = (
        [{(p["image"], p["label"]): p[key] for p in each["images"]} for each in (of_made, of_read)]
        for key in ("nearest", "distance")
    )
    assert nearest[0] == nearest[1]
    assert distances[0] == pytest.approx(distances[1], abs=1e-9), "their matrices have other orders of rows"
    assert of_read["rows"] == sorted(labels) and of_read["accuracy"]["clean"] is None
    assert "so in no accuracy: clean" in capsys.readouterr().err
    assert not (tmp_path / "read" / "conditions.png").exists()


def test_model_without_prototypes_gets_the_figure_alone(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(photographs, "--model", "tiny", "--size", SIZE, "--out", tmp_path) == 0
    assert "has no prototypes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["conditions.png"]


def test_figure_holds_every_group_in_its_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = [name for name in ("haze", "noise=15", "noise=50", "snow") for _ in range(6)]
    vectors = np.repeat(np.eye(4), 6, axis=0) + 0.05 * rng.standard_normal((24, 4))
    points = embed(vectors, seed=1)
    assert points.shape == (24, 2) and np.isfinite(points).all()
    np.testing.assert_allclose(
        points, embed(vectors, seed=1), atol=1e-3 * np.abs(points).max()
    )  # threads add up freely
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(24, np.inf))
    assert [groups[i] for i in distance.argmin(1)] == groups  # t-SNE keeps the four heaps apart
    draw(points, groups, "title", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((0x56, 0xB4, 0xE9), (0xD5, 0x5E, 0x00)):  # haze, and the strongest noise
        painted = 0.85 * np.array(colour) + 0.15 * 255  # as opaque as `draw` paints
        assert (np.abs(pixels - painted).max(1) <= 3).sum() > 200


def test_what_is_missing_is_named(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat" / "haze").mkdir(parents=True)
    for arguments, words in (
        ((tmp_path / "nowhere",), "no such folder"),
        ((tmp_path / "empty",), "no images in"),
        (("--degraded", tmp_path / "empty"), "has no subfolders"),
        (("--degraded", tmp_path / "flat"), f"no images in {tmp_path / 'flat' / 'haze'}"),
        ((photographs, "--degradations", "smoke"), "unknown degradation 'smoke'"),
        ((photographs, "--degradations", "rain=3"), "unknown degradation 'rain=3'"),
        ((photographs, "--size", "0"), "--size 0"),
        ((photographs, "--model", "tiny", "--no-figure"), "no table to make"),
    ):
        assert run_here("--model", "tiny", *arguments, "--out", tmp_path / "out") == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0]
        assert not (tmp_path / "out").exists()


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)  # what an import of an absent module meets
    with pytest.raises(DataError, match=r"scikit-learn and matplotlib .*\[eval\]"):
        embed(np.eye(5))


def test_few_or_equal_images_and_bad_levels(photographs: Path) -> None:
    with pytest.raises(DataError, match="at least 4 images, not 3"):
        embed(np.eye(3))
    with pytest.raises(DataError, match="all 5 images have the same condition"):
        embed(np.ones((5, 3)))
    with pytest.raises(ConfigError, match="must be a number"):
        next(synthetic_images(photographs, ["noise=much"], SIZE))
    with pytest.raises(DataError, match="no such folder"):
        next(degraded_images(photographs / "nowhere", SIZE))
