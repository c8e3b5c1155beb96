"""Conversion of a manifest's JSON to dataclasses, with errors that name the entry that is not valid."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import msgspec

from ..errors import BundleError

__all__ = ["convert", "invalid", "is_inside"]

T = TypeVar("T")
Key = str | int

LOCATION = re.compile(r" - at (?:`key` in )?`\$(?P<path>.*)`$")
"""End of msgspec's messages, such as "- at `$.components[...].inputs[0].name`". The key of a mapping is `[...]`."""
MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
ANY_KEY = "..."

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


def invalid(where: str, problem: str) -> BundleError:
    """Return the error for an entry of the manifest.

    Args:
        where: place of the entry, such as `components.mfm.inputs[0]`.
        problem: what is wrong with it, to follow the place in a sentence.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(invalid("crops.count", "is 3, not a square number"))  # doctest: +ELLIPSIS
        bundle.json is not valid: crops.count is 3, not a square number; copy the bundle again, or rebuild it with: ...
    """
    remedy = "copy the bundle again, or rebuild it with: dod-export build"
    return BundleError(f"bundle.json is not valid: {where} {problem}; {remedy}")


def convert(data: Any, type_: type[T]) -> T:
    """Convert JSON values to a dataclass. Types must match exactly: no number for a string, no bool for a number.

    Keys that the dataclass does not have are ignored.

    Args:
        data: what `json.loads` returns.
        type_: dataclass to convert to; its fields may be `Annotated` with `msgspec.Meta`.

    Returns:
        An instance of `type_`.

    Raises:
        BundleError: an entry is missing or not valid. The message names the first one, and its value.
    """
    try:
        return msgspec.convert(data, type_)
    except msgspec.ValidationError as error:
        raise _describe(str(error), data, type_) from error


def is_inside(path: str) -> bool:
    """Return True for the path of a file in the bundle: relative, with forward slashes, and never out of the folder.

    Args:
        path: path as the manifest has it.

    Returns:
        True if the path is safe on every system. The file need not exist.

    Example:
        >>> [is_inside(path) for path in ("onnx/fp32/mfm.onnx", "../mfm.onnx", "/mfm.onnx", "C:mfm.onnx")]
        [True, False, False, False]
    """
    pure = PurePosixPath(path)
    clean = path == pure.as_posix() and not pure.is_absolute() and ".." not in pure.parts
    return clean and path not in ("", ".") and not any(character in path for character in "\\:\0")


def _describe(message: str, data: Any, type_: type) -> BundleError:
    """Return the error of this package for a message of msgspec."""
    location = LOCATION.search(message)
    keys = _resolve(location["path"], message, data, type_) if location else []
    problem = message[: location.start()] if location else message
    if missing := MISSING.fullmatch(problem):
        return invalid(_place([*keys, missing["field"]]), "is missing")
    problem = f"{problem[0].lower()}{problem[1:]}".replace("`", "")
    return invalid(_place(keys) or "its content", f"is {_repr.repr(_at(data, keys))}: {problem}")


def _resolve(path: str, message: str, data: Any, type_: type) -> list[Key]:
    """Return the keys of a path in which msgspec leaves out the keys of mappings.

    A left-out key is found by trial: the entry that is not valid gives the same message without its neighbors.
    """
    keys: list[Key] = []
    for name, index in re.findall(r"\.([^.[]+)|\[(\d+|\.\.\.)\]", path):
        if index != ANY_KEY:
            keys.append(name or int(index))
            continue
        wrong = (key for key in _at(data, keys) if _message(_only(data, keys, key), type_) == message)
        if (key := next(wrong, None)) is None:
            break
        keys.append(key)
    return keys


def _message(data: Any, type_: type) -> str | None:
    try:
        msgspec.convert(data, type_)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _only(data: Any, keys: Sequence[Key], kept: Key) -> Any:
    """Return a copy of the data in which the mapping at `keys` has the entry `kept` alone."""
    if not keys:
        return {kept: data[kept]}
    copy = data.copy()
    copy[keys[0]] = _only(copy[keys[0]], keys[1:], kept)
    return copy


def _at(data: Any, keys: Sequence[Key]) -> Any:
    for key in keys:
        data = data[key]
    return data


def _place(keys: Sequence[Key]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
