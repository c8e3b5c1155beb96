"""Validation of parsed YAML with msgspec: errors name the key, the value and the valid keys."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from .errors import ConfigError

__all__ = ["convert", "did_you_mean", "override"]

Config = TypeVar("Config")


def convert(values: dict[str, Any], config: type[Config], **given: Any) -> Config:
    """Convert keys and values to a dataclass. Types are strict, except that an integer is accepted as a float.

    Args:
        values: parsed YAML.
        config: dataclass whose types and `msgspec.Meta` constraints the values must satisfy.
        **given: fields that `values` must not contain.

    Returns:
        The instance of `config`.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    _check_keys(config, values, given)
    try:
        return msgspec.convert({**values, **given}, config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(error, values, config)) from None


def override(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set values by dotted key, in place.

    Args:
        values: parsed YAML.
        overrides: values by dotted key, such as {"lora.rank": 16}; missing parents are added.

    Returns:
        `values`.

    Raises:
        ConfigError: a parent holds a value instead of keys and values.

    Example:
        >>> override({"lora": {"alpha": 4}}, {"lora.rank": 16})
        {'lora': {'alpha': 4, 'rank': 16}}
    """
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: expected keys and values in {parent}, found {node!r}")
        node[last] = value
    return values


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return a hint at the valid word that is nearest to a wrong one.

    Args:
        word: the wrong word.
        valid: the valid words.

    Returns:
        Text to append to an error message, empty where no valid word is near.

    Example:
        >>> did_you_mean("rnak", ["name", "rank"])
        " (did you mean 'rank'?)"
    """
    match = difflib.get_close_matches(word, list(valid), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _check_keys(config: type, values: dict[Any, Any], given: Iterable[str] = (), parents: str = "") -> None:
    """Raise ConfigError for a key that is no field: in dataclasses, msgspec ignores such keys."""
    hints = {name: hint for name, hint in typing.get_type_hints(config).items() if name not in given}
    for key, value in values.items():
        if key not in hints:
            text = f"unknown key {key!r}{did_you_mean(str(key), hints)}: choose one of {', '.join(hints)}"
            raise ConfigError(f"{parents}: {text}" if parents else text)
        nested = next((t for t in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(t)), None)
        if isinstance(nested, type) and isinstance(value, dict):
            _check_keys(nested, value, (), f"{parents}.{key}" if parents else key)


def _explain(error: msgspec.ValidationError, values: Any, config: Any) -> str:
    """Return the dotted key of a validation error, what is expected there, and the value that was found."""
    message, _, place = str(error).partition(" - at `$")
    key = place.strip(".`")
    if isinstance(error.__cause__, ConfigError):  # of a `__post_init__`
        return f"{key}.{error.__cause__}" if key else str(error.__cause__)
    if not key:
        return message.replace("Object missing required field", "missing key").replace("`", "'")
    found, hint = values, config
    for part in re.findall(r"[^.\[\]]+", key):
        hint = typing.get_type_hints(hint)[part] if dataclasses.is_dataclass(hint) else None
        found = found[int(part)] if isinstance(found, list | tuple) else found[part]
    expected = message.partition("Expected ")[2].partition(", got")[0].replace("`", "")
    expected = {"object": "keys and values", "array": "a list"}.get(expected.removesuffix(" | null"), expected)
    if typing.get_origin(hint) is Literal:
        expected = f"one of {', '.join(typing.get_args(hint))}"
    return f"{key}: expected {expected}, found {found!r}"
