"""Condition paths: the ways that an image can take through the components of a bundle."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AUTO", "ConditionPath"]

AUTO = "auto"
"""Name of the path on which the model itself finds out what degrades an image."""


@dataclass(frozen=True)
class ConditionPath:
    """The way of an image through the model: `auto`, or the path of a named condition.

    Attributes:
        name: `auto`, or a condition of the bundle such as `haze`.

    Example:
        >>> ConditionPath("auto").dynamic, ConditionPath("auto").merged
        (True, None)
        >>> ConditionPath("haze").dynamic, ConditionPath("haze").merged
        (False, 'haze')
    """

    name: str = AUTO

    @property
    def dynamic(self) -> bool:
        """True on `auto`: the MFM predicts the modulation of each image, and the UNet runs its low-rank branches."""
        return self.name == AUTO

    @property
    def merged(self) -> str | None:
        """Name of the condition that is merged into the UNet's weights, None on `auto`."""
        return None if self.dynamic else self.name
