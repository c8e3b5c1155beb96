"""`benchmarks/quality.py` on toy bundles: its figures are those of its images."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image
from skimage import data

from benchmarks.classical import METHODS
from benchmarks.photographs import OWN, SCIKIT_IMAGE, photographs
from benchmarks.quality import main
from benchmarks.tasks import TASKS
from dod.data.degradations import DEGRADATIONS, degrade, rng_for
from dod.data.images import centre_crop
from dod.evaluation.evaluate import evaluate, find_scenes
from dod.evaluation.metrics import psnr
from dod_runtime.errors import UsageError
from tests.benchmarks.commands import refused, run, run_here
from tests.runtime.toy_bundle import write_toy_bundle


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that gives back every image as it was."""
    folder = tmp_path_factory.mktemp("identity") / "bundle"
    return write_toy_bundle(folder, effect=0, precisions=["fp32"], conditions=DEGRADATIONS)


@pytest.fixture(scope="module")
def finished(identity: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run on two photographs prints, and its folder."""
    where = tmp_path_factory.mktemp("quality")
    done = run("quality", "--bundle", identity, "--size", 96, "--limit", 2, where=where)
    assert done.returncode == 0, done.stderr
    return done.stdout, where / "build" / "quality"


def test_images_and_figures_agree(finished: tuple[str, Path]) -> None:
    printed, out = finished
    figures = json.loads((out / "quality.json").read_text())
    assert list(figures["tasks"]) == [task.name for task in TASKS]
    for kind in ("input", "output"):
        for each in evaluate(find_scenes(out / kind, out / "truth")).result.images:
            task, _, name = each.name.partition("/")
            stated = figures["tasks"][task]["images"][name][kind]
            assert stated["psnr"] == (None if task == "clean" else pytest.approx(each.values["psnr"], abs=1e-9))
            assert stated["ssim"] == pytest.approx(each.values["ssim"], abs=1e-9)
    mean = figures["tasks"]["noise-25"]["mean"]["input"]["psnr"]
    assert 19 < mean < 22 and f"noise sigma 25: {mean:.2f} -> {mean:.2f} dB" in printed
    assert "a clean photograph comes back at 60.00 dB" in printed
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * 96 and sheet.height > len(TASKS) * 96


def test_inputs_are_the_degradations_of_the_seed(finished: tuple[str, Path]) -> None:
    out = finished[1]
    truth = centre_crop(data.chelsea(), 96)
    with Image.open(out / "truth" / "haze" / "chelsea.png") as written:
        np.testing.assert_array_equal(np.asarray(written), truth)
    hazy, parameters = degrade(truth.astype(np.float32) / np.float32(255), "haze", rng_for("chelsea", "haze", 0))
    with Image.open(out / "input" / "haze" / "chelsea.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.rint(hazy * 255).astype(np.uint8))
    stated = json.loads((out / "quality.json").read_text())["tasks"]["haze"]["images"]["chelsea"]
    assert stated["parameters"]["beta"] == parameters["beta"]
    depth = hashlib.sha256(parameters["depth"].tobytes()).hexdigest()
    assert stated["parameters"]["depth"] == {"shape": [96, 96], "sha256": depth}
    assert stated["input"]["psnr"] == pytest.approx(psnr(hazy, truth), abs=1e-6)


def test_own_photographs_seed_and_matching_condition(tmp_path: Path) -> None:
    toy = write_toy_bundle(tmp_path / "bundle", precisions=["fp32"], conditions=DEGRADATIONS)
    folder = tmp_path / "photographs" / "cats"
    folder.mkdir(parents=True)
    Image.fromarray(data.chelsea()).convert("L").save(folder / "grey.jpg")
    arguments = ("--bundle", toy, "--photographs", folder.parent, "--size", 64, "--seed", 5)
    figures = []
    for condition in ("matching", "matching", "haze"):
        done = run("quality", *arguments, "--condition", condition, where=tmp_path)
        assert done.returncode == 0, done.stderr
        figures.append(json.loads((tmp_path / "build" / "quality" / "quality.json").read_text())["tasks"])
    assert (tmp_path / "build" / "quality" / "output" / "rain" / "cats" / "grey.png").is_file()
    assert not list(tmp_path.glob("build/.*")), "a staging folder was left behind"
    assert figures[0] == figures[1]
    same = [name for name in figures[0] if figures[0][name]["mean"]["output"] == figures[2][name]["mean"]["output"]]
    assert same == ["haze"]


def test_classical_methods_stand_beside_the_bundle(identity: Path, tmp_path: Path) -> None:
    """The bundle changes nothing, so a method is better than it exactly where it raises the PSNR of the input."""
    done = run("quality", "--bundle", identity, "--size", 96, "--limit", 1, "--classical", where=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "build" / "quality"
    figures = json.loads((out / "quality.json").read_text())
    assert set(figures["classical"]) == set(METHODS) and "classical" not in figures["tasks"]["clean"]["mean"]
    better = 0
    for name, method in METHODS.items():
        tasks = [task.name for task in TASKS if task.degradation == name]
        gains = [_psnr(out, "classical", task) - _psnr(out, "input", task) for task in tasks]
        stated = figures["classical"][name]
        assert stated["classical_psnr"] - stated["output_psnr"] == pytest.approx(np.mean(gains), abs=1e-9)
        assert f"{method.name} PSNR" in done.stdout
        better += bool(np.mean(gains) < 0)
    assert f"more PSNR than the classical method on {better} of 5 tasks" in done.stdout
    with Image.open(out / "contact_sheet.png") as sheet:
        assert 4 * 96 < sheet.width < 5 * 96


def _psnr(out: Path, kind: str, task: str) -> float:
    with Image.open(out / kind / task / "astronaut.png") as a, Image.open(out / "truth" / task / "astronaut.png") as b:
        return psnr(np.asarray(a), np.asarray(b))


def test_photographs_come_with_the_wheel() -> None:
    found = photographs()
    assert tuple(found) == SCIKIT_IMAGE
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in found.values())


def test_photographs_of_several_sources(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        Image.fromarray(data.chelsea()).save(tmp_path / f"{name}.png")
    assert tuple(photographs((tmp_path, OWN), limit=1)) == ("cat", SCIKIT_IMAGE[0])
    (tmp_path / "cat.png").rename(tmp_path / "coffee.png")
    with pytest.raises(UsageError, match="holds a photograph named coffee, as a folder before it does"):
        photographs((OWN, tmp_path))


def test_bad_input(identity: Path, tmp_path: Path) -> None:
    def attempt(*arguments: object, bundle: Path = identity) -> CompletedProcess[str]:
        return run_here(main, "--bundle", bundle, "--out", tmp_path / "out", *arguments)

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    shutil.copytree(tmp_path / "broken", tmp_path / "kept")
    for arguments, words in (
        (("--condition", "hase"), ("unknown condition 'hase'", "did you mean 'haze'")),
        (("--backend", "onnx"), ("unknown backend 'onnx'",)),
        (("--backend", "tensorrt"), ("without the target tensorrt",)),
        (("--photographs", tmp_path / "nowhere"), ("no such folder", "nowhere")),
        (("--photographs", tmp_path / "empty"), ("no images in",)),
        (("--photographs", tmp_path / "broken"), ("not an image", "a.png")),
        (("--limit", 0), ("--limit must be at least 1",)),
        (("--out", "."), ("--out .: name the folder itself",)),
        (("--out", tmp_path / "kept"), ("kept", "choose another folder")),
    ):
        refused(attempt(*arguments), *words)
    refused(run("quality", "--bundle", tmp_path / "nowhere", where=tmp_path), "no such bundle", "build_engines.py")
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "kept").iterdir()] == ["a.png"]


def test_images_larger_than_the_bundle_takes(identity: Path, tmp_path: Path) -> None:
    done = run_here(main, "--bundle", identity, "--out", tmp_path / "out", "--size", 200, "--limit", 1)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "out").rglob("*.png"):
        with Image.open(path) as image:
            assert path.name.startswith("contact") or image.size == (200, 200)
    assert "a clean photograph comes back at 60.00 dB" in done.stdout
