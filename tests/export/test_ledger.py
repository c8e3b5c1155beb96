"""The build's ledger: damage loses entries, never a build; states and differences."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.ledger import BackgroundHashes, CacheEntry, difference, read_ledger, write_ledger


def test_entries_survive_the_file(tmp_path: Path) -> None:
    entries = {"b.onnx": CacheEntry({"size": [1, 2]}, 5, "b" * 64, 1.5, {"layers": 3}, [1, 5, 9]),
               "a.onnx": CacheEntry({}, 0, "a" * 64, 0.0)}  # fmt: skip
    write_ledger(tmp_path / "build.json", entries)
    assert read_ledger(tmp_path / "build.json") == entries
    assert [path.name for path in tmp_path.iterdir()] == ["build.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"files": 1}', '{"files": {"a.onnx": {"bytes": 5}}}', "[" * 100_000]
)
def test_a_damaged_ledger_has_no_entries(tmp_path: Path, text: str) -> None:
    (tmp_path / "build.json").write_text(text)
    assert read_ledger(tmp_path / "build.json") == {} == read_ledger(tmp_path / "absent.json")


def test_a_missing_file_ends_no_background_hashes(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("text")
    hashes = BackgroundHashes([tmp_path / "absent", tmp_path / "here"])
    assert hashes.sha256(tmp_path / "here") == BackgroundHashes().sha256(tmp_path / "here")
    with pytest.raises(FileNotFoundError):
        hashes.sha256(tmp_path / "absent")


def test_difference() -> None:
    assert difference({"a": 1, "b": {"c": [1]}}, {"b": {"c": [1]}, "a": 1}) is None
    assert difference({"b": {"c": 1}}, {"b": {"c": 2}}) == "b: c was 1, is 2"
    assert difference({"gone": 1}, {}) == "gone was 1, is null"
