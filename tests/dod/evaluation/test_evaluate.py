"""`dod-evaluate images` on real folders, with and without a checkpoint."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dod.checkpoint import load_model
from dod.data.images import crop_to_multiple
from dod.errors import DataError, run_command
from dod.evaluation.evaluate import evaluate, find_scenes, main
from dod.evaluation.metrics import psnr
from dod.evaluation.restoration import restore_image
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
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_images_are_matched_by_path_without_suffix(tmp_path: Path) -> None:
    outputs = save(tmp_path / "outputs", a=noisy(0), rain__b=noisy(1), other__c=noisy(2))
    truths = save(tmp_path / "truths", rain__b=noisy(1))
    Image.fromarray(noisy(0)).save(truths / "a.bmp")
    scenes = find_scenes(outputs, truths)
    assert [scene.name for scene in scenes] == ["a", "rain/b"]
    done = evaluate(scenes)
    assert [each.values["psnr"] for each in done.result.images] == [math.inf, math.inf]


def test_command_prints_and_writes(tmp_path: Path) -> None:
    outputs = save(tmp_path / "outputs", a=noisy(0), b=noisy(1))
    truths = save(tmp_path / "truths", a=noisy(2), b=noisy(1))
    done = run(outputs, truths, "--json", tmp_path / "new" / "f.json", "--markdown", tmp_path / "f.md")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "PSNR", "dB", "SSIM"] and lines[3].split() == ["b", "inf", "1.0000"]
    found = json.loads((tmp_path / "new" / "f.json").read_text())
    assert found["images"][0]["psnr"] == pytest.approx(psnr(noisy(0), noisy(2)))
    assert found["images"][1] == {"name": "b", "psnr": None, "ssim": 1.0}
    assert found["metrics"]["ssim"]["library"].startswith("scikit-image 0.") and found["crop_to_multiple"] == 1
    text = (tmp_path / "f.md").read_text()
    assert text.startswith("| image | PSNR dB |") and "7x7" in text


def test_degradations_are_the_first_folders_and_have_equal_weight(tmp_path: Path) -> None:
    """Two images of rain at 20 and 30 dB and one of haze at 40: the mean is 32.5 over degradations, 30 over images."""
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
    assert {name: each["images"] for name, each in found["degradations"].items()} == {"haze": 1, "rain": 2}
    assert found["degradations"]["rain"]["psnr"] == pytest.approx(25, abs=0.05) and "ssim" not in found["mean"]
    assert found["mean"]["psnr"] == pytest.approx(32.5, abs=0.05)
    last, found_mean = done.stdout.splitlines()[-3:], round(found["mean"]["psnr"], 2)
    assert [line.split()[0] for line in last] == ["haze", "rain", "mean"] and float(last[2].split()[-1]) == found_mean
    assert (tmp_path / "f.md").read_text().startswith("| degradation ")


def _share(error: float) -> float:
    """Return the fraction of values that must be floor(error) + 1 so that the root mean square is `error`."""
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
    with pytest.raises(DataError, match="cut: .*48x32 and 49x35"):
        evaluate(find_scenes(outputs, truths), ["psnr"])
    with pytest.raises(DataError, match="cut: 48x32.* 64"):
        evaluate(find_scenes(outputs, truths), ["psnr"], multiple=64)


@pytest.mark.slow
def test_a_checkpoint_restores_images_of_any_size(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Saved images equal those of the model on a padded image, and are the ones that are measured."""
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
    assert np.abs(here - restored).max() <= 1, "another process may round differently"
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["images"][0]["psnr"] == pytest.approx(psnr(restored, clean)) and found["preset"] == "tiny"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 70
    again = (saved, truths, "--inputs", inputs, "--json", tmp_path / "g.json", "--sheet", tmp_path / "again.png")
    assert main([str(each) for each in again]) == 0
    assert json.loads((tmp_path / "g.json").read_text())["images"] == found["images"]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


def test_the_sample_images_are_evaluated_without_options() -> None:
    done = run("docs/samples", "docs/samples/clean")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == [
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
        ((a, b), f"{a} lacks 1 of 2"),
        ((a, tmp_path / "nowhere"), "no such folder"),
        ((a, tmp_path / "empty"), "no images in"),
        ((a, c), "30x20 and 9x9"),
        ((twice, twice), "x twice"),
        ((broken, a), f"{broken / 'y.png'}"),
        ((a, a, "--inputs", b), f"{b} lacks 1 of 2"),
        ((a, a, "--metrics", "psnr", "lpisp"), "'lpips'"),
        ((a, a, "--crop-to-multiple", 0), "--crop-to-multiple 0"),
        ((a, a, "--crop-to-multiple", 64), "x: 30x20"),
        ((a, a, "--save", tmp_path / "s"), "--save applies to --checkpoint"),
        ((a, a, "--checkpoint", "mini", "--inputs", a), "--inputs"),
        ((a, a, "--checkpoint", "mini", "--save", b), f"--save {b}"),
        ((a, a, "--checkpoint", "min"), "min"),
        ((a, a, "--sheet", tmp_path / "sheet"), "sheet.png"),
        ((a, a, "--device", "gpu"), "--device gpu"),
    ]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = refusals(tmp_path)
    for arguments, words in cases:
        assert run_command(main, [str(each) for each in arguments]) == 2, arguments
        printed = capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0] and not printed.out, (arguments, printed)
    done = run(*cases[0][0])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
