"""Tables in plain text and Markdown."""

from __future__ import annotations

import pytest

from dod_runtime.tables import facts_list, table


def test_numbers_are_aligned_to_the_right() -> None:
    assert table(["n", "x"], [["a", 1], ["bb", 10]]).splitlines() == ["n      x", "---  ---", "a      1", "bb    10"]


def test_cells() -> None:
    assert table(["n"], [[True], [None], [1.23456], [123456.7]]).splitlines()[2:] == ["yes", "-", "1.235", "123457"]


def test_a_table_without_rows_has_headers() -> None:
    assert table(["only headers"], []).count("\n") == 1


def test_markdown_has_alignment_marks() -> None:
    lines = table(["name", "x"], [["a", 1]], markdown=True).splitlines()
    assert lines == ["| name |   x |", "| :--- | --: |", "| a    |   1 |"]
    assert table(["name", "x"], [["a", 1]], align="rl", markdown=True).splitlines()[1] == "| ---: | :-- |"


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b"], [["a"]])


def test_facts_are_aligned() -> None:
    assert facts_list({"a": "1", "long": "2"}) == "a     1\nlong  2"
