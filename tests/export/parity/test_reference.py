"""The runs of a parity check: every condition path on at least one sample, whatever the samples are called."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from export.parity.compare import unchecked
from export.parity.reference import Sample, condition_of, paths_of
from tests.dod.small_model import image
from tests.export.parity.test_proof import Substitute, bundle, figures_of, substitute

__all__ = ["substitute"]  # a fixture


def sample(name: str, seed: int) -> Sample:
    values = {"image": image(1, 16, 24, seed=seed).numpy(), "crops": image(4, 32, 32)[None].numpy()}
    return Sample(name, condition_of(name, ("haze", "rain")), values)


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
    paths = paths_of(two_conditions(), [sample(name, i) for i, name in enumerate(names)])
    assert [run.sample.name for run in paths.pop("auto")] == names
    assert {path: [run.sample.name for run in runs] for path, runs in paths.items()} == expected
    assert all([run.alone for run in runs] == [("unet_merged",), *[()] * (len(runs) - 1)] for runs in paths.values())


def test_a_sample_of_any_name_proves_every_path(model: DOD, substitute: Substitute) -> None:
    substitute(copy.deepcopy(model))
    figures = figures_of(model, two_conditions(), sample("IMG_1234.jpg", 0))
    assert unchecked(figures, ("auto", "haze", "rain")) == []
    merged = {each.path: each for each in figures if (each.component, each.step) == ("pipeline", "merged")}
    assert merged.keys() == {"haze", "rain"} and all(each.passed for each in merged.values())
    assert merged["haze"].max_abs != merged["rain"].max_abs, "each with the modulation of its own condition"


def test_the_longest_condition_that_a_name_begins_with() -> None:
    assert condition_of("rain-haze_1.png", ("rain", "rain-haze", "haze")) == "rain-haze"
    assert condition_of("IMG_1234.jpg", ("rain", "haze")) == condition_of("rain.png", ()) == ""
