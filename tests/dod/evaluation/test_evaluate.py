"""Metrics against scikit-image and by hand, and `python -m dod.evaluation.evaluate` on real folders."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dod.checkpoint import load_model
from dod.data.images import crop_to_multiple, match
from dod.errors import DataError, run_command
from dod.evaluation.contact_sheet import Entry, contact_sheet
from dod.evaluation.evaluate import evaluate, find_scenes, main
from dod.evaluation.metrics import core_values, psnr, ssim
from dod.evaluation.restoration import restore_image
from dod.evaluation.scores import Score, mean
from dod_runtime.image.geometry import pad

ROOT = Path(__file__).parents[3]


def noisy(seed: int, shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(folder: Path, **images: np.ndarray) -> Path:
    for name, pixels in images.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dod.evaluation.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@settings(max_examples=20)
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
    assert mean([Score("a", {"psnr": 20, "ssim": 0.5}), Score("b", {"psnr": 30, "ssim": 0.7})]) == Score(
        "mean", {"psnr": 25, "ssim": 0.6}
    )


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
def test_images_that_cannot_be_compared(a: np.ndarray, b: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        core_values("street", a, b)
    assert str(caught.value).startswith("street: ")


def test_pairs_go_by_path_without_extension(tmp_path: Path) -> None:
    outputs = save(tmp_path / "outputs", a=noisy(0), rain__b=noisy(1), other__c=noisy(2))
    truths = save(tmp_path / "truths", rain__b=noisy(1))
    Image.fromarray(noisy(0)).save(truths / "a.bmp")
    assert list(match(outputs, truths)) == ["a", "rain/b"]
    done = evaluate(find_scenes(outputs, truths))
    assert [each.values["psnr"] for each in done.result.images] == [math.inf, math.inf]


def test_command_prints_and_writes(tmp_path: Path) -> None:
    outputs = save(tmp_path / "outputs", a=noisy(0), b=noisy(1))
    truths = save(tmp_path / "truths", a=noisy(2), b=noisy(1))
    done = run(outputs, truths, "--json", tmp_path / "new" / "f.json", "--markdown", tmp_path / "f.md")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "PSNR", "dB", "SSIM"] and lines[2].split() == ["b", "inf", "1.0000"]
    found = json.loads((tmp_path / "new" / "f.json").read_text())
    assert found["images"][0]["psnr"] == pytest.approx(psnr(noisy(0), noisy(2)))
    assert found["images"][1] == {"name": "b", "psnr": None, "ssim": 1.0}
    assert found["metrics"]["ssim"]["library"].startswith("scikit-image 0.") and found["crop_to_multiple"] == 1
    text = (tmp_path / "f.md").read_text()
    assert text.startswith("| image | PSNR dB |") and "- SSIM: 7x7 windows" in text


def test_tasks_are_the_first_folders_and_count_alike(tmp_path: Path) -> None:
    """Two images of rain at 20 and 30 dB and one of haze at 40: 32.5 over the tasks, 30 over the images."""
    black = np.zeros((10, 10, 3), np.uint8)
    truths, outputs = tmp_path / "truths", tmp_path / "outputs"
    for name, error in {"rain__light__a": 25.5, "rain__b": 25.5 / 10**0.5, "haze__c": 2.55}.items():
        image = np.full(black.shape, math.floor(error), np.uint8)
        image.reshape(-1)[: round(_share(error) * image.size)] += 1
        save(truths, **{name: black})
        save(outputs, **{name: image})
    done = run(outputs, truths, "--json", tmp_path / "f.json", "--markdown", tmp_path / "f.md", "--metrics", "psnr")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert {task: each["images"] for task, each in found["tasks"].items()} == {"haze": 1, "rain": 2}
    assert found["tasks"]["rain"]["psnr"] == pytest.approx(25, abs=0.05) and "ssim" not in found["mean"]
    assert found["mean"]["psnr"] == pytest.approx(32.5, abs=0.05)
    last, found_mean = done.stdout.splitlines()[-3:], round(found["mean"]["psnr"], 2)
    assert [line.split()[0] for line in last] == ["haze", "rain", "mean"] and float(last[2].split()[-1]) == found_mean
    assert (tmp_path / "f.md").read_text().startswith("| task ")


def _share(error: float) -> float:
    """How many of the values must be floor(error) + 1 for the mean square to be error squared."""
    low = math.floor(error)
    return (error**2 - low**2) / (2 * low + 1)


def test_crop_to_multiple_is_in_the_middle(tmp_path: Path) -> None:
    truth = noisy(0, (35, 49, 3))
    middle = truth[1:33, 0:48]
    np.testing.assert_array_equal(crop_to_multiple(truth, 16), middle)
    output = truth.copy()
    output[0], output[33:], output[:, 48] = 0, 0, 0
    outputs, truths = (
        save(tmp_path / "outputs", whole=output, cut=middle),
        save(tmp_path / "truths", whole=truth, cut=truth),
    )
    cropped = evaluate(find_scenes(outputs, truths), ["psnr"], multiple=16).result
    assert [each.values["psnr"] for each in cropped.images] == [math.inf, math.inf]
    with pytest.raises(DataError, match="cut: the images differ in size: 48x32 and 49x35"):
        evaluate(find_scenes(outputs, truths), ["psnr"])
    with pytest.raises(DataError, match="cut: 48x32 is too small .* multiple of 64"):
        evaluate(find_scenes(outputs, truths), ["psnr"], multiple=64)


def test_a_checkpoint_restores_images_of_any_size(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Saved, they are those of the model on the image that the runtime would pad; and they are what is measured."""
    degraded, clean = noisy(0, (70, 50, 3)), noisy(1, (70, 50, 3))
    inputs, truths, saved = (
        save(tmp_path / "in", haze__a=degraded),
        save(tmp_path / "clean", haze__a=clean),
        tmp_path / "o",
    )
    files = ("--json", tmp_path / "f.json", "--sheet", tmp_path / "sheet.png", "--save", saved)
    done = run(inputs, truths, "--checkpoint", tiny_checkpoint, *files, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    with Image.open(saved / "haze" / "a.png") as image:
        restored = np.asarray(image)
    model = load_model(tiny_checkpoint)
    multiple = model.preset.size_multiple
    padded = pad(degraded, *(-(-side // multiple) * multiple for side in degraded.shape[:2]))
    assert padded.shape != degraded.shape

    def tensor(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])).float() / 127.5 - 1

    with torch.no_grad():
        expected = model(tensor(padded), model.modulation(tensor(degraded))[1])[0, :, :70, :50]
    difference = (expected.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5 - restored
    assert np.abs(difference).max() < 0.51 and restored.std() > 1
    here = restore_image(model, degraded).astype(int)
    assert np.abs(here - restored).max() <= 1, "another process may have other threads, and so round another way"
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["images"][0]["psnr"] == pytest.approx(psnr(restored, clean)) and found["preset"] == "tiny"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 70
    again = (saved, truths, "--inputs", inputs, "--json", tmp_path / "g.json", "--sheet", tmp_path / "again.png")
    assert main([str(each) for each in again]) == 0
    assert json.loads((tmp_path / "g.json").read_text())["images"] == found["images"]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


def test_samples_are_evaluated_as_they_lie() -> None:
    done = run("docs/samples", "docs/samples/clean")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        *("blur", "haze", "low-light", "noise", "rain"),
        "mean",
    ]


def refusals(tmp_path: Path) -> list[tuple[tuple[object, ...], str]]:
    a = save(tmp_path / "a", x=noisy(0), y=noisy(0))
    b = save(tmp_path / "b", x=noisy(0), z=noisy(0))
    c = save(tmp_path / "c", x=noisy(0), y=noisy(0, (9, 9, 3)))
    (tmp_path / "empty").mkdir()
    twice = save(tmp_path / "twice", x=noisy(0))
    Image.fromarray(noisy(0)).save(twice / "x.jpg")
    broken = save(tmp_path / "broken", x=noisy(0), y=noisy(0))
    (broken / "y.png").write_bytes((broken / "y.png").read_bytes()[:100])
    return [
        ((a, b), f"{a} lacks 1 of 2: z"),
        ((a, tmp_path / "nowhere"), "no such folder"),
        ((a, tmp_path / "empty"), "no images in"),
        ((a, c), "y: the images differ in size: 30x20 and 9x9"),
        ((twice, twice), "has x twice"),
        ((broken, a), f"cannot read the image {broken / 'y.png'}"),
        ((a, a, "--inputs", b), f"{b} lacks 1 of 2: y"),
        ((a, a, "--metrics", "psnr", "lpisp"), "unknown metric 'lpisp': did you mean 'lpips'?"),
        ((a, a, "--crop-to-multiple", 0), "--crop-to-multiple must be at least 1, not 0"),
        ((a, a, "--crop-to-multiple", 64), "x: 30x20 is too small"),
        ((a, a, "--save", tmp_path / "s"), "--save goes with --checkpoint"),
        ((a, a, "--checkpoint", "mini", "--inputs", a), "already holds the inputs"),
        ((a, a, "--checkpoint", "mini", "--save", b), f"--save {b} is not empty"),
        ((a, a, "--checkpoint", "min"), "min"),
        ((a, a, "--sheet", tmp_path / "sheet"), "such as sheet.png"),
        ((a, a, "--device", "gpu"), "--device gpu cannot be used here: "),
    ]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = refusals(tmp_path)
    for arguments, words in cases:
        assert run_command(main, [str(each) for each in arguments]) == 2, arguments
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0] and not printed.out, (arguments, printed)
    done = run(*cases[0][0])
    assert done.returncode == 2 and done.stderr == f"error: {cases[0][1]}\n"


def test_contact_sheet_shows_images_at_their_own_resolution() -> None:
    images = [noisy(i, (40, 60, 3)) for i in range(3)]
    sheet = np.asarray(contact_sheet([Entry("one", images), Entry("two", images)], per_line=1, side=32))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (32, 32, 3))[:, :, 0]
    middle = images[1][4:36, 14:46]
    corners = windows[:, :, 0, 0] == middle[0, 0]
    found = [at for at in np.argwhere(corners.all(-1)) if (windows[tuple(at)] == middle).all()]
    assert len(found) == 2 and found[0][1] == found[1][1]
