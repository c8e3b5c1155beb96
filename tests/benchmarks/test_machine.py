"""Description of the machine."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import pytest

from benchmarks.machine import machine_info, machine_summary


def test_the_machine_is_described_in_json_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latency.py", "--bundle", "a b"])
    info = machine_info()
    assert json.loads(json.dumps(info)) == info
    assert info["libraries"]["numpy"] == version("numpy") and info["cores"] >= 1
    assert info["command"] == "python latency.py --bundle 'a b'"


def test_the_summary_is_one_line() -> None:
    info = {**machine_info(), "processor": "Abacus 9", "cores": 3, "gpu": None, "libraries": {"openvino": "1.2"}}
    assert machine_summary(info) == "Abacus 9, 3 cores; no GPU; openvino 1.2"
    assert "GeForce" in machine_summary({**info, "gpu": {"name": "GeForce"}})
