"""Conversion of JSON to dataclasses: the message of an error names the place and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from dod_runtime.bundle.validation import convert, is_inside
from dod_runtime.errors import BundleError


@dataclass(frozen=True)
class Leaf:
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tree:
    name: str
    branches: Mapping[str, Mapping[str, Leaf]]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ([], "its content is"),
        ({"name": "a"}, "branches is missing"),
        ({"name": 1, "branches": {}}, "name is 1"),
        ({"name": "a", "branches": {"x": {}, "y": 3}}, "branches.y is 3"),
        ({"name": "a", "branches": {"x": {"p": {}, "q": {"values": [1, "2"]}}}}, "branches.x.q.values[1] is '2'"),
        ({"name": "a", "branches": {"x": {"p": {}}, "y": {"p": {"values": 1}}}}, "branches.y.p.values is 1"),
        ({"name": "a", "branches": {"": {"a.b": 0}}}, "branches..a.b is 0"),
        ({"name": "a", "branches": {"x": {3: {}}}}, "branches.x"),
        ({"name": ["long"] * 99, "branches": {}}, "name is ['long', 'long'"),
    ],
)
def test_invalid_entries_are_named(data: Any, place: str) -> None:
    with pytest.raises(BundleError) as caught:
        convert(data, Tree)
    message = str(caught.value)
    assert place in message and len(message) < 250


def test_unknown_keys_are_ignored() -> None:
    assert convert({"name": "a", "branches": {"x": {"p": {"more": 1}}}}, Tree) == Tree("a", {"x": {"p": Leaf()}})


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "a/..b", "a b/c", ".hidden"])
def test_paths_inside(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/a", "//a", "a/../b", "../a", "a/", "a//b", "./a", "a/.", "a\\b", "C:a", "C:\\a", "a\0"]
)
def test_paths_outside_or_ambiguous(path: str) -> None:
    assert not is_inside(path)
