"""The example that trains a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod.checkpoint import load_model
from tests.examples.conftest import Example


@pytest.mark.slow
def test_every_part_is_trained(run_example: Example, photographs: Path, tmp_path: Path) -> None:
    done = run_example("05_train_a_small_one/train.sh", photographs, tmp_path / "small", 2)
    assert done.returncode == 0, done.stderr
    model = load_model(str(tmp_path / "small"))
    assert set(model.prototypes) == set(model.preset.conditions)
    assert any(
        parameter.abs().max() > 0 for name, parameter in model.adaptation_parameters().items() if "lora_B" in name
    )


def test_photographs_are_required(run_example: Example) -> None:
    done = run_example("05_train_a_small_one/train.sh")
    assert done.returncode != 0 and "PHOTOGRAPHS" in done.stderr
