"""JSON that others wrote, checked as it is read: whatever is wrong is reported with its place."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, TypeVar

from ..errors import BundleError

__all__ = ["Node", "wrong"]

Kind = TypeVar("Kind")


def wrong(where: str, what: str) -> BundleError:
    """The error for an entry of the manifest, and what to do about it."""
    return BundleError(f"bundle.json is not valid: {where} {what}; rebuild with: python export/build_engines.py")


class Node:
    """A JSON value and its place in the document, such as `components.mfm.inputs[0]`."""

    def __init__(self, value: Any, where: str) -> None:
        self.value, self.where = value, where

    def __contains__(self, key: str) -> bool:
        return key in self._expect(dict, "an object")

    def __getitem__(self, key: str) -> Node:
        place = f"{self.where}.{key}".lstrip(".")
        if key not in self:
            raise wrong(place, "is missing")
        return Node(self.value[key], place)

    def items(self, plain: bool = False) -> list[tuple[str, Any]]:
        """The entries of an object, as nodes or as they stand."""
        entries = self._expect(dict, "an object")
        return [(key, entries[key] if plain else self[key]) for key in entries]

    def list(self) -> list[Node]:
        return [Node(item, f"{self.where}[{i}]") for i, item in enumerate(self._expect(list, "a list"))]

    def text(self) -> str:
        return self._expect(str, "a text")

    def boolean(self) -> bool:
        return self._expect(bool, "true or false")

    def number(self) -> float:
        return float(self.value) if type(self.value) is int else self._expect(float, "a number")

    def integer(self, least: int | None = None) -> int:
        value = self._expect(int, "a whole number")
        if isinstance(value, bool) or (least is not None and value < least):
            raise wrong(self.where, f"is {value}, not a whole number from {least or 0}")
        return value

    def range(self) -> tuple[int, int, int]:
        """Least, best and largest of a profile."""
        numbers = [item.integer(1) for item in self.list()]
        if len(numbers) != 3 or sorted(numbers) != numbers:
            raise wrong(self.where, f"is {numbers}, not three rising numbers")
        return numbers[0], numbers[1], numbers[2]

    def file(self) -> str:
        """A path inside the bundle: relative, with forward slashes, and never out of the folder."""
        path = self.text()
        inside = path == PurePosixPath(path).as_posix() and not path.startswith("/") and "\\" not in path
        if not inside or ".." in PurePosixPath(path).parts or path in ("", ".") or ":" in path or "\0" in path:
            raise wrong(self.where, f"is {path!r}, not a path inside the bundle")
        return path

    def _expect(self, kind: type[Kind], name: str) -> Kind:
        if not isinstance(self.value, kind):
            raise wrong(self.where or "its content", f"is {_short(self.value)}, not {name}")
        return self.value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
