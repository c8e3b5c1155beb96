"""Results as JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.json_file import write_json


def test_values_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, {"psnr": (float("inf"), 30.5), "nested": [{"snr": float("nan"), "name": "a", "none": None}]})
    assert json.loads(path.read_text()) == {"psnr": [None, 30.5], "nested": [{"snr": None, "name": "a", "none": None}]}
