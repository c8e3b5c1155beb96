"""`benchmarks/quality.py` on toy bundles: scores, images and tables agree."""

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

from benchmarks.classical import CLASSICAL_METHODS
from benchmarks.degradation_cases import CASES
from benchmarks.quality import main
from dod.data.degradations import DEGRADATIONS, degrade, rng_for
from dod.data.images import centre_crop
from dod.evaluation.evaluate import evaluate, find_scenes
from dod.evaluation.metrics import psnr
from tests.benchmarks.commands import refused, run, run_here
from tests.runtime.toy_bundle import write_toy_bundle


@pytest.fixture(scope="module")
def finished(identity: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output of a run on two photographs, and its folder."""
    where = tmp_path_factory.mktemp("quality")
    done = run("quality", "--bundle", identity, "--size", 96, "--limit", 2, where=where)
    assert done.returncode == 0, done.stderr
    return done.stdout, where / "build" / "quality"


def test_images_and_scores_agree(finished: tuple[str, Path]) -> None:
    printed, out = finished
    results = json.loads((out / "quality.json").read_text())
    assert list(results["cases"]) == [case.name for case in CASES]
    for role in ("input", "output"):
        for each in evaluate(find_scenes(out / role, out / "truth")).result.images:
            case, _, name = each.name.partition("/")
            stated = results["cases"][case]["images"][name][role]
            assert stated["psnr"] == (None if case == "clean" else pytest.approx(each.values["psnr"], abs=1e-9))
            assert stated["ssim"] == pytest.approx(each.values["ssim"], abs=1e-9)
    mean = results["cases"]["noise-25"]["mean"]["input"]["psnr"]
    assert 19 < mean < 22 and f"noise sigma 25: {mean:.2f} -> {mean:.2f} dB" in printed
    assert "clean: output 60.00 dB" in printed
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * 96 and sheet.height > len(CASES) * 96


def test_inputs_are_the_degradations_of_the_seed(finished: tuple[str, Path]) -> None:
    out = finished[1]
    truth = centre_crop(data.chelsea(), 96)
    with Image.open(out / "truth" / "haze" / "chelsea.png") as written:
        np.testing.assert_array_equal(np.asarray(written), truth)
    hazy, parameters = degrade(truth.astype(np.float32) / np.float32(255), "haze", rng_for("chelsea", "haze", 0))
    with Image.open(out / "input" / "haze" / "chelsea.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.rint(hazy * 255).astype(np.uint8))
    stated = json.loads((out / "quality.json").read_text())["cases"]["haze"]["images"]["chelsea"]
    assert stated["parameters"]["beta"] == parameters["beta"]
    depth = hashlib.sha256(parameters["depth"].tobytes()).hexdigest()
    assert stated["parameters"]["depth"] == {"shape": [96, 96], "sha256": depth}
    assert stated["input"]["psnr"] == pytest.approx(psnr(hazy, truth), abs=1e-6)


def test_own_photographs_seed_and_matching_condition(tmp_path: Path) -> None:
    toy = write_toy_bundle(tmp_path / "bundle", precisions=["fp32"], conditions=DEGRADATIONS)
    folder = tmp_path / "photographs" / "cats"
    folder.mkdir(parents=True)
    Image.fromarray(data.chelsea()).convert("L").save(folder / "grey.jpg")
    out = tmp_path / "build" / "quality"
    arguments = ("--bundle", toy, "--photographs", folder.parent, "--size", 64, "--seed", 5)
    results = []
    for condition in ("matching", "matching", "haze"):
        done = run_here(main, *arguments, "--condition", condition, "--out", out)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((out / "quality.json").read_text())["cases"])
    assert (out / "output" / "rain" / "cats" / "grey.png").is_file()
    assert not list(tmp_path.glob("build/.*")), "a staging folder was left behind"
    assert results[0] == results[1]
    same = [name for name in results[0] if results[0][name]["mean"]["output"] == results[2][name]["mean"]["output"]]
    assert same == ["haze"]


def test_classical_methods_are_compared(identity: Path, tmp_path: Path) -> None:
    """The bundle changes nothing, so a method is better than the bundle if it raises the PSNR of the input."""
    out = tmp_path / "build" / "quality"
    done = run_here(main, "--bundle", identity, "--size", 96, "--limit", 1, "--classical", "--out", out)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "quality.json").read_text())
    assert set(results["classical"]) == set(CLASSICAL_METHODS) and "classical" not in results["cases"]["clean"]["mean"]
    better = 0
    for name, method in CLASSICAL_METHODS.items():
        cases = [case.name for case in CASES if case.degradation == name]
        gains = [_psnr(out, "classical", case) - _psnr(out, "input", case) for case in cases]
        stated = results["classical"][name]
        assert stated["classical_psnr"] - stated["output_psnr"] == pytest.approx(np.mean(gains), abs=1e-9)
        assert f"{method.name} PSNR" in done.stdout
        better += bool(np.mean(gains) < 0)
    assert f"{better} of 5 degradations" in done.stdout
    with Image.open(out / "contact_sheet.png") as sheet:
        assert 4 * 96 < sheet.width < 5 * 96


def _psnr(out: Path, role: str, case: str) -> float:
    with Image.open(out / role / case / "astronaut.png") as a, Image.open(out / "truth" / case / "astronaut.png") as b:
        return psnr(np.asarray(a), np.asarray(b))


def test_bad_input(identity: Path, tmp_path: Path) -> None:
    def attempt(*arguments: object, bundle: Path = identity) -> CompletedProcess[str]:
        return run_here(main, "--bundle", bundle, "--out", tmp_path / "out", *arguments)

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    shutil.copytree(tmp_path / "broken", tmp_path / "kept")
    for arguments, words in (
        (("--condition", "hase"), ("'hase'", "'haze'")),
        (("--backend", "onnx"), ("'onnx'", "onnxruntime")),
        (("--backend", "tensorrt"), ("tensorrt",)),
        (("--photographs", tmp_path / "nowhere"), ("nowhere",)),
        (("--photographs", tmp_path / "empty"), ("empty",)),
        (("--photographs", tmp_path / "broken"), ("a.png",)),
        (("--limit", 0), ("--limit", "at least 1")),
        (("--out", "."), ("--out .",)),
        (("--out", tmp_path / "kept"), ("kept", "another folder")),
    ):
        refused(attempt(*arguments), *words)
    refused(run("quality", "--bundle", tmp_path / "nowhere", where=tmp_path), "nowhere", "dod-export build")
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "kept").iterdir()] == ["a.png"]


def test_images_larger_than_the_bundle_takes(identity: Path, tmp_path: Path) -> None:
    done = run_here(main, "--bundle", identity, "--out", tmp_path / "out", "--size", 200, "--limit", 1)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "out").rglob("*.png"):
        with Image.open(path) as image:
            assert path.name.startswith("contact") or image.size == (200, 200)
    assert "clean: output 60.00 dB" in done.stdout
