"""Metrics against scikit-image and by hand, and `python -m dod.evaluate` on real folders."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dod.contact_sheet import Entry, contact_sheet
from dod.errors import DataError
from dod.evaluate import Score, evaluate, mean, pair, psnr, score, ssim

ROOT = Path(__file__).parents[2]


def noisy(seed: int, shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(folder: Path, **pictures: np.ndarray) -> Path:
    for name, pixels in pictures.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dod.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_metrics_are_those_of_scikit_image(seed: int) -> None:
    a, b = noisy(seed), noisy(seed + 1)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b / 255.0, a / 255.0, data_range=1), abs=1e-9)
    expected = structural_similarity(a / 255.0, b / 255.0, data_range=1, channel_axis=2)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_known_values() -> None:
    black, grey = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))  # 51 is a fifth of 255
    assert psnr(grey, grey) == math.inf and ssim(grey, grey) == 1
    assert psnr(grey.astype(np.float32) / np.float32(255), black) == pytest.approx(psnr(grey, black), abs=1e-5)
    assert mean([Score("a", 20, 0.5), Score("b", 30, 0.7)]) == Score("mean", 25, 0.6)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (noisy(0), noisy(0, (20, 31, 3)), "30x20 and 31x20"),
        (noisy(0).astype(np.float32), noisy(1), "float in 0..1"),
        (noisy(0).astype(np.int64), noisy(1), "int64"),
        (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 3)), "0..1"),
        (noisy(0, (6, 30, 3)), noisy(1, (6, 30, 3)), "7x7"),
    ],
)
def test_pictures_that_cannot_be_compared(a: np.ndarray, b: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        score("street", a, b)
    assert str(caught.value).startswith("street: ")


def test_pairs_go_by_path_without_extension(tmp_path: Path) -> None:
    outputs = save(tmp_path / "outputs", a=noisy(0), rain__b=noisy(1), other__c=noisy(2))
    truths = save(tmp_path / "truths", rain__b=noisy(1))
    Image.fromarray(noisy(0)).save(truths / "a.bmp")
    assert [name for name, _, _ in pair(outputs, truths)] == ["a", "rain/b"]
    assert [each.psnr for each in evaluate(outputs, truths)] == [math.inf, math.inf]


def test_command_prints_and_writes(tmp_path: Path) -> None:
    outputs = save(tmp_path / "outputs", a=noisy(0), b=noisy(1))
    truths = save(tmp_path / "truths", a=noisy(2), b=noisy(1))
    done = run(outputs, truths, "--json", tmp_path / "new" / "f.json", "--markdown", tmp_path / "f.md")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["picture", "PSNR", "dB", "SSIM"] and lines[2].split() == ["b", "inf", "1.0000"]
    found = json.loads((tmp_path / "new" / "f.json").read_text())
    assert found["pictures"][0]["psnr"] == pytest.approx(psnr(noisy(0), noisy(2)))
    assert found["pictures"][1] == {"name": "b", "psnr": None, "ssim": 1.0}
    assert (tmp_path / "f.md").read_text().startswith("| picture | PSNR dB |")


def test_samples_are_evaluated_as_they_lie() -> None:
    done = run("docs/samples", "docs/samples/clean")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        *("blur", "haze", "low-light", "noise", "rain"),
        "mean",
    ]


def test_bad_input(tmp_path: Path) -> None:
    a = save(tmp_path / "a", x=noisy(0), y=noisy(0))
    b = save(tmp_path / "b", x=noisy(0), z=noisy(0))
    c = save(tmp_path / "c", x=noisy(0), y=noisy(0, (9, 9, 3)))
    (tmp_path / "empty").mkdir()
    twice = save(tmp_path / "twice", x=noisy(0))
    Image.fromarray(noisy(0)).save(twice / "x.jpg")
    broken = save(tmp_path / "broken", x=noisy(0), y=noisy(0))
    (broken / "y.png").write_bytes((broken / "y.png").read_bytes()[:100])
    for pair_of, words in (
        ((a, b), f"{a} lacks 1 of 2: z"),
        ((a, tmp_path / "nowhere"), "no such folder"),
        ((a, tmp_path / "empty"), "no pictures in"),
        ((a, c), "y: the pictures differ in size: 30x20 and 9x9"),
        ((twice, twice), "has x twice"),
        ((broken, a), f"cannot read {broken / 'y.png'}"),
    ):
        done = run(*pair_of)
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0] and "Traceback" not in done.stderr


def test_contact_sheet_shows_pictures_at_their_own_resolution() -> None:
    pictures = [noisy(i, (40, 60, 3)) for i in range(3)]
    sheet = np.asarray(contact_sheet([Entry("one", pictures), Entry("two", pictures)], per_line=1, side=32))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (32, 32, 3))[:, :, 0]
    middle = pictures[1][4:36, 14:46]
    corners = windows[:, :, 0, 0] == middle[0, 0]
    found = [at for at in np.argwhere(corners.all(-1)) if (windows[tuple(at)] == middle).all()]
    assert len(found) == 2 and found[0][1] == found[1][1]
