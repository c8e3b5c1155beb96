"""The search for modules that stay in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod.model.dod import DOD
from export.precision import record as record_module
from export.precision import search
from export.precision.record import calibrate
from export.precision.sensitivity import candidates


@pytest.mark.slow
def test_a_higher_threshold_takes_fp32_modules(model: DOD, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    none = calibrate(model, paths, (), print)["trials"][0]["psnr_db"]
    for module in (search, record_module):
        monkeypatch.setattr(module, "THRESHOLD", none + 1 - search.MARGIN)
    record = calibrate(model, paths, None, print)
    assert record["fp32_modules"] and record["trials"][-1]["psnr_db"] > none
    assert len(record["fp32_modules"]) < len(candidates(model)) / 2
    assert record["components"].keys() == {"mfm", "encoder", "unet", "decoder"}
