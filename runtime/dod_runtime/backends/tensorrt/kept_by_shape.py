"""A cache of values in groups by shape, such as GPU buffers by image size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["KeptByShape"]

Value = TypeVar("Value")


class KeptByShape(Generic[Value]):
    """Values by name in groups, one group for each shape. The least recently selected groups are freed.

    Args:
        free: function that frees a value.
        most: largest number of groups.

    Example:
        >>> freed = []
        >>> kept = KeptByShape(freed.append, most=2)
        >>> for shape in (1, 2, 1, 3):
        ...     kept.select(shape)
        ...     _ = kept.get("latent", lambda: f"latent of {shape}")
        >>> freed
        ['latent of 2']
    """

    def __init__(self, free: Callable[[Value], None], most: int = 4) -> None:
        self._free, self._most = free, most
        self._groups: OrderedDict[Hashable, dict[Hashable, Value]] = OrderedDict()

    def select(self, shape: Hashable) -> None:
        """Make the group of a shape the current one, and free the oldest group where there are too many.

        Args:
            shape: key of the group.
        """
        self._groups.setdefault(shape, {})
        self._groups.move_to_end(shape)
        self.shrink(self._most)

    def get(self, name: Hashable, make: Callable[[], Value]) -> Value:
        """Return a value of the current group.

        Args:
            name: name of the value.
            make: function that creates the value where it does not exist yet.
        """
        group = self._groups[next(reversed(self._groups))]
        if name not in group:
            group[name] = make()
        return group[name]

    def shrink(self, most: int = 1) -> None:
        """Free the oldest groups.

        Args:
            most: number of groups that stay; 1 keeps only the current one.
        """
        while len(self._groups) > most:
            _, group = self._groups.popitem(last=False)
            for value in group.values():
                self._free(value)
