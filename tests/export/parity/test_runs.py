"""Runs of a parity check: every condition path on at least one sample, whatever the files are called."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from export.parity.compare import unchecked
from export.parity.runs import ParitySample, condition_of, load_sample, paths_of, sample_pixels
from tests.dod.small_model import image
from tests.export.parity.stand_ins import Substitute, bundle, results_of


def sample_of(name: str, seed: int = 0) -> ParitySample:
    values = {"image": image(1, 16, 24, seed=seed).numpy(), "crops": image(4, 32, 32)[None].numpy()}
    return ParitySample(name, condition_of(name, ("haze", "rain")), values)


def two_conditions() -> Bundle:
    one = bundle()
    conditions = {name: f"conditions/{name}.safetensors" for name in ("rain", "haze")}
    return Bundle(one.folder, replace(one.manifest, conditions=conditions))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["IMG_1.png", "IMG_2.png"], {"haze": ["IMG_1.png"], "rain": ["IMG_1.png"]}),
        (["IMG_1.png", "rain.png", "rain-2.png"], {"haze": ["IMG_1.png"], "rain": ["rain.png", "rain-2.png"]}),
        (["haze.png", "rain.png"], {"haze": ["haze.png"], "rain": ["rain.png"]}),
    ],
)
def test_every_condition_has_a_run(names: list[str], expected: dict[str, list[str]]) -> None:
    paths = paths_of(two_conditions(), [sample_of(name, i) for i, name in enumerate(names)])
    assert [run.sample.name for run in paths.pop("auto")] == names
    assert {path: [run.sample.name for run in runs] for path, runs in paths.items()} == expected
    for runs in paths.values():
        assert [run.isolated for run in runs] == [("unet_merged",), *[()] * (len(runs) - 1)]


def test_a_sample_of_any_name_checks_every_path(model: DOD, substitute: Substitute) -> None:
    substitute(copy.deepcopy(model))
    results = results_of(model, two_conditions(), sample_of("IMG_1234.jpg"))
    assert unchecked(results, ("auto", "haze", "rain")) == []
    merged = {each.path: each for each in results if (each.component, each.step) == ("pipeline", "merged")}
    assert merged.keys() == {"haze", "rain"} and all(each.passed for each in merged.values())
    assert merged["haze"].max_abs != merged["rain"].max_abs, "each with the modulation of its own condition"


def test_the_longest_condition_that_a_name_begins_with() -> None:
    assert condition_of("rain-haze_1.png", ("rain", "rain-haze", "haze")) == "rain-haze"
    assert condition_of("IMG_1234.jpg", ("rain", "haze")) == condition_of("rain.png", ()) == ""


def test_load_sample(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 18, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "haze_1.png")
    loaded = load_sample(tmp_path / "haze_1.png", bundle(), ("rain", "haze"))
    assert (loaded.name, loaded.condition) == ("haze_1.png", "haze")
    found = loaded.values["image"]
    assert found.shape == (1, 3, 24, 20) and found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found[0, :, :21, :18], pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert loaded.values["crops"].shape == (1, 4, 3, 32, 32)
    upright = np.ascontiguousarray(pixels.transpose(1, 0, 2))  # stored on its side, as cameras do
    turned = Image.Exif()
    turned[0x0112] = 5  # transposed
    Image.fromarray(upright).save(tmp_path / "rain_1.png", exif=turned)
    np.testing.assert_array_equal(sample_pixels(tmp_path / "rain_1.png", 64), found[0, :, :21, :18].transpose(1, 2, 0))
    assert sample_pixels(tmp_path / "haze_1.png", 16).shape == (16, 16, 3)
    (tmp_path / "haze_1.png").rename(tmp_path / "other.png")
    assert load_sample(tmp_path / "other.png", bundle(), ("rain", "haze")).condition == ""
    assert load_sample(tmp_path / "other.png", bundle(), ()).condition == ""
