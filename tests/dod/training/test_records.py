"""Records of training runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod.training.records import is_repeated, log_excerpt
from dod.training.state import FORMER_KEYS
from tests.dod.small_training import QUICK


def test_the_record_of_an_older_version_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"schedule": vars(QUICK), "options": {"w_start": 0.2}, "samples": {"mist": 0.3}, "log": []}
    old_schedule = {{new: old for old, new in FORMER_KEYS.items()}.get(key, key): v for key, v in vars(QUICK).items()}
    old = {"schedule": old_schedule, "options": {"gate_start": 0.2}, "samples": {"misty": 0.3}, "log": [{"step": 1}]}
    assert "batch" in old_schedule and is_repeated(Path("folder"), [old], run)
    assert "--seed" in capsys.readouterr().out
    assert not is_repeated(Path("folder"), [old], {**run, "samples": {"mist": 0.4}})


def test_an_excerpt_is_evenly_spaced() -> None:
    log = [{"step": float(step)} for step in range(100)]
    assert log_excerpt(log) == log[::5] and log_excerpt(log[:7]) == log[:7]
