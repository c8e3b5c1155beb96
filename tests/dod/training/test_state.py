"""Schedules and states: ranges, the learning rate, and states of older versions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from dod.errors import ConfigError, TrainingError
from dod.tensors import read_safetensors, write_safetensors
from dod.training.state import FORMER_KEYS, Schedule, with_current_keys
from tests.dod.small_training import QUICK
from tests.dod.training.test_loop import interrupted, run, toy


def test_learning_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10)
    rates = [schedule.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.51) and 0.02 <= rates[-1] < 0.03


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"save_every": 0}, "--save-every 0"),
        ({"workers": -1}, "--workers -1"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
    ],
)
def test_numbers_out_of_range_are_named(number: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(QUICK, **number)


def test_former_keys_are_replaced_at_every_level() -> None:
    record = {"schedule": {"batch": 2}, "options": {"tile": [64]}, "log": [{"pictures_per_second": 1.0}]}
    assert with_current_keys(record) == {
        "schedule": {"batch_size": 2},
        "options": {"tile_size": [64]},
        "log": [{"images_per_second": 1.0}],
    }


def test_the_state_of_an_older_version_resumes(tmp_path: Path) -> None:
    interrupted(tmp_path, depends_on={"tile_size": [64]})
    file = tmp_path / "toy.state.safetensors"
    with safe_open(file, "pt") as opened:
        state = {key: json.loads(value) for key, value in opened.metadata().items()}
    former = {new: old for old, new in FORMER_KEYS.items()}
    state["run"] = {former.get(key, key): value for key, value in state["run"].items()}
    assert {"batch", "tile", "the weights it started from"} <= state["run"].keys()
    write_safetensors(read_safetensors(file), file, {key: json.dumps(value) for key, value in state.items()})
    with pytest.raises(TrainingError, match=r"tile_size = \[64\], .* \[32\]"):
        run(toy(), tmp_path, depends_on={"tile_size": [32]})
    assert run(toy(), tmp_path, depends_on={"tile_size": [64]})[-1]["step"] == QUICK.steps
