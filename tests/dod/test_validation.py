"""Validation of parsed YAML; `test_config` covers the errors of presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import pytest

from dod.errors import ConfigError
from dod.validation import convert, did_you_mean, override


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, msgspec.Meta(ge=1)] = 1
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    name: str
    given: str = "default"
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def test_values_become_dataclasses() -> None:
    found = convert({"name": "a", "maybe": {"size": 2, "sizes": [3, 4]}}, Outer, given="by the caller")
    assert found == Outer("a", "by the caller", Inner(), Inner(2, sizes=(3, 4)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing key 'name'"),
        ({"name": "a", "given": "b"}, "unknown key 'given'.*choose one of name, inner, maybe"),
        ({"name": "a", "maybe": {"sice": 2}}, "maybe: unknown key 'sice'.*'size'"),
        ({"name": "a", "inner": {"size": 0}}, "inner.size: .*>= 1.*0"),
        ({"name": "a", "inner": {"mode": "slow"}}, "inner.mode: .*fast, exact.*'slow'"),
        ({"name": "a", "maybe": {"sizes": [1, "b"]}}, r"maybe.sizes\[1\]: .*int.*'b'"),
        ({"name": "a", "maybe": 3}, "maybe: .*keys and values.*3"),
        ({"name": "a", "inner": None}, "inner: .*keys and values.*None"),
    ],
)
def test_errors_name_the_key_and_the_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(values, Outer, given="by the caller")


def test_overrides_add_missing_parents_and_refuse_values_as_parents() -> None:
    assert override({"a": 1}, {"b.c": 2, "a": 3}) == {"a": 3, "b": {"c": 2}}
    with pytest.raises(ConfigError, match=r"a\.b: .*1"):
        override({"a": 1}, {"a.b": 2})


def test_the_nearest_word_is_a_hint() -> None:
    assert "'rank'" in did_you_mean("rnak", ["name", "rank"])
    assert did_you_mean("xyz", ["name", "rank"]) == ""
