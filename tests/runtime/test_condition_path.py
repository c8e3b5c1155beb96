"""The value object of a condition path."""

from __future__ import annotations

from dod_runtime.condition_path import AUTO, ConditionPath


def test_auto_is_dynamic_and_merges_nothing() -> None:
    assert ConditionPath() == ConditionPath(AUTO)
    assert ConditionPath().dynamic and ConditionPath().merged is None


def test_a_named_condition_is_merged() -> None:
    path = ConditionPath("haze")
    assert not path.dynamic and path.merged == "haze"
    assert {path: 1}[ConditionPath("haze")] == 1
