"""Text and tables of the precision step."""

from __future__ import annotations

import json
from pathlib import Path

from dod.model.dod import DOD
from export.precision.record import calibrate
from export.precision.summary import section


def test_the_section_says_what_was_measured_and_chosen(model: DOD, planted: DOD, paths: list[Path]) -> None:
    record = json.loads(json.dumps(calibrate(model, paths, None, print, {paths[0]: "noise"})))
    text = "\n\n".join(section(record, "plot.png"))
    assert "a.png (noise)" in text and "(plot.png)" in text and "ONNX Runtime" in text
    assert "without any" in text and "### Error of each component" not in text
    record = json.loads(json.dumps(calibrate(planted, paths, (), print)))
    text = "\n\n".join(section(record, "plot.png"))
    assert "as requested" in text and "not kept in fp32" in text and "not finite" in text
    assert "### Error of each component" in text
