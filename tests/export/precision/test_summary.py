"""Text and tables of the precision step."""

from __future__ import annotations

from export.precision.record import PrecisionRecord
from export.precision.summary import section


def test_the_section_of_a_model_that_fits_fp16(record: PrecisionRecord) -> None:
    text = "\n\n".join(section(record, "plot.png"))
    assert "a.png (noise)" in text and "(plot.png)" in text and "ONNX Runtime" in text
    assert "without any" in text and "### Error of each component" not in text


def test_the_section_of_a_model_that_overflows(overflowing_record: PrecisionRecord) -> None:
    text = "\n\n".join(section(overflowing_record, "plot.png"))
    assert "as requested" in text and "not kept in fp32" in text and "not finite" in text
    assert "### Error of each component" in text
