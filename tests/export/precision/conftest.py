"""Fixtures of the precision tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.model.dod import DOD
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
