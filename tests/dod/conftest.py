"""Models that many tests use and none changes, and a preset to train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dod.config import Preset, load_preset
from dod.model.dod import DOD
from tests.dod.small_model import SMALLER, randomise, tiny


@pytest.fixture(scope="session")
def preset() -> Preset:
    return tiny()


@pytest.fixture(scope="session")
def untrained(preset: Preset) -> DOD:
    """An untrained model, whose LoRA and detail modules are the identity."""
    return DOD.from_preset(preset)


@pytest.fixture(scope="session")
def model(preset: Preset) -> DOD:
    """A model with random adaptation and detail modules, on the same base."""
    return randomise(DOD.from_preset(preset))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A preset with two levels and no trained weights yet, and two photographs."""
    preset = yaml.safe_load((load_preset("tiny").folder / "preset.yaml").read_text())
    preset["base"] |= {
        "source": "base",
        "vae": {**preset["base"]["vae"], "block_out_channels": SMALLER["base.vae.block_out_channels"]},
        "unet": {
            **preset["base"]["unet"],
            "block_out_channels": SMALLER["base.unet.block_out_channels"],
            "attention_heads": SMALLER["base.unet.attention_heads"],
        },
    }
    preset["ddpm"]["source"], preset["checkpoint"] = "ddpm", "dod"
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    (tmp_path / "photographs").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / name)
    return tmp_path
