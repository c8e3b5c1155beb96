"""Models that several tests read and none changes."""

from __future__ import annotations

import pytest

from dod.config import Preset
from dod.model import DOD
from tests.dod.small_model import randomise, tiny


@pytest.fixture(scope="session")
def preset() -> Preset:
    return tiny()


@pytest.fixture(scope="session")
def untrained(preset: Preset) -> DOD:
    """As it comes: LoRA and detail modules are the identity."""
    return DOD.from_preset(preset)


@pytest.fixture(scope="session")
def model(preset: Preset) -> DOD:
    """With random adaptation and detail modules, on the same base."""
    return randomise(DOD.from_preset(preset))
