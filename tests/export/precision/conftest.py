"""Fixtures of the precision tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.model.dod import DOD
from export.precision.record import PrecisionRecord, calibrate
from tests.export.planted import plant_overflow


@pytest.fixture(scope="package")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small images, one of a size that has to be padded."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (32, 40, 3)), ("b.png", (30, 33, 3))):
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="package")
def planted(model: DOD) -> DOD:
    """The model with an overflow in fp16."""
    return plant_overflow(model)


@pytest.fixture(scope="package")
def record(model: DOD, paths: list[Path]) -> PrecisionRecord:
    """The record of the model, as it is read back from JSON. No test changes it."""
    return json.loads(json.dumps(calibrate(model, paths, None, print, {paths[0]: "noise"})))


@pytest.fixture(scope="package")
def cured_record(planted: DOD, paths: list[Path]) -> PrecisionRecord:
    """The record of the planted model with the fp32 modules that the search finds."""
    return json.loads(json.dumps(calibrate(planted, paths, None, print)))


@pytest.fixture(scope="package")
def overflowing_record(planted: DOD, paths: list[Path]) -> PrecisionRecord:
    """The record of the planted model without fp32 modules."""
    return json.loads(json.dumps(calibrate(planted, paths, (), print)))
