"""Fixtures of the export tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dod.model.dod import DOD
from tests.dod.small_model import normal, randomise, smaller
from tests.export.small_graphs import export_block


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """block.onnx: convolution, group normalisation and attention, in fp16."""
    return export_block(tmp_path_factory.mktemp("graph") / "block.onnx")


@pytest.fixture(scope="session")
def model() -> DOD:
    """A model with two levels, random adaptation, and prototypes of two conditions. No test changes it."""
    model = randomise(DOD.from_preset(smaller()), strength=0.05)
    channels: Any = model.mfm.h_space.channels
    model.prototypes = {name: normal(channels, seed=seed) for seed, name in enumerate(("rain", "haze"))}
    return model
