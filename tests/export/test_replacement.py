"""Which bundles a build may replace, by their `bundle.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.errors import UsageError
from export.replacement import Identity, check_replacement

MODULATION = {"name": "modulation", "dtype": "float32", "shape": ["batch", 72, 2, 4]}
STATED: dict[str, Any] = {
    "schema": 3,
    "name": "tiny",
    "model": {"preset": "tiny", "checkpoint": "runs/a", "base_sha256": "a", "checkpoint_sha256": "b"},
    "components": {"mfm": {"inputs": [], "outputs": [MODULATION]}},
    "conditions": {"haze": "conditions/haze.safetensors", "rain": "conditions/rain.safetensors"},
    "targets": {"openvino": {}},
}


def planned(name: str = "tiny", layers: int = 72, rank: int = 4, conditions: str = "haze rain") -> Identity:
    return Identity(frozenset((name,)), layers, rank, tuple(conditions.split()))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / MANIFEST).write_text(json.dumps(STATED))
    return tmp_path


def refusal(out: Path, build: Identity, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error without --force. With it, the same text is printed."""
    with pytest.raises(UsageError, match="--force") as error:
        check_replacement(out, build, force=False)
    check_replacement(out, build, force=True)
    printed = capsys.readouterr().out
    assert str(out) in printed and printed.count("\n") == 1
    return str(error.value)


@pytest.mark.parametrize(
    "build", [planned(), planned(conditions="rain haze noise")], ids=["new weights", "more conditions"]
)
def test_the_same_model_is_replaced_freely(out: Path, build: Identity, capsys: pytest.CaptureFixture[str]) -> None:
    check_replacement(out, build, force=False)
    check_replacement(out / "absent", planned("other"), force=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (planned("mini"), ["tiny", "haze, rain", "mini"]),
        (planned(rank=8), ["72", "rank 4", "rank 8"]),
        (planned(layers=52), ["72", "52"]),
        (planned(conditions="haze"), ["tiny", "leaves out rain"]),
        (planned(conditions=""), ["leaves out haze, rain"]),
    ],
)
def test_what_would_be_lost_asks_for_force(
    out: Path, build: Identity, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(out, build, capsys)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"tiny"', "[" * 100_000, "{}", '{"name": 3, "model": []}'])
def test_a_damaged_manifest_is_named(out: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (out / MANIFEST).write_text(text)
    message = refusal(out, planned(), capsys)
    assert MANIFEST in message and str(out) in message
    (out / MANIFEST).write_bytes(b"\xff\xfe")
    assert MANIFEST in refusal(out, planned(), capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"schema": 99},
        {"components": None},
        {
            "components": {
                "mfm": {"outputs": [3, {"name": "modulation"}, {**MODULATION, "shape": ["batch", "n", 2, []]}]}
            }
        },
        {"model": "tiny"},
        {"name": None},
    ],
)
def test_an_older_manifest_is_read_as_far_as_it_goes(
    out: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (out / MANIFEST).write_text(json.dumps({**STATED, **change}))
    check_replacement(out, planned(), force=False)
    assert "mini" in refusal(out, planned("mini"), capsys)
    assert "leaves out rain" in refusal(out, planned(conditions="haze"), capsys)
