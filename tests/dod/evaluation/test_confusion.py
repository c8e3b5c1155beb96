"""Confusion tables: counts, accuracy and report."""

from __future__ import annotations

import pytest

from dod.evaluation.confusion import Classification, Confusion, confusion, report


def test_table_counts_and_accuracy() -> None:
    found = [
        Classification("a", "rain", "rain", 0.1),
        Classification("b", "rain", "haze", 0.2),
        Classification("a", "noise=25", "noise", 0.3),
    ]
    found += [Classification("c", "rain", "rain", 0.1), Classification("d", "snow", "haze", 0.4)]
    result = confusion(found, ("haze", "rain", "noise"))
    assert result == Confusion(
        ("rain", "noise=25", "snow"), ("haze", "rain", "noise"), ((1, 2, 0), (0, 0, 1), (1, 0, 0))
    )
    assert result.accuracy("rain") == pytest.approx(2 / 3) and result.accuracy("noise=25") == 1
    assert result.accuracy("snow") is None and result.without_prototype == ("snow",)
    assert result.accuracy() == pytest.approx(3 / 4)  # snow has no prototype
    lines = [line.split() for line in report(result).splitlines()]
    assert lines[2:] == [
        ["rain", "1", "2", "0", "66.7", "%"],
        ["noise=25", "0", "0", "1", "100.0", "%"],
        ["snow", "1", "0", "0", "-"],
        ["all", "2", "2", "1", "75.0", "%"],
    ]
