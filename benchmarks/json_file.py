"""Results as JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["finite", "write_json"]


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write results; infinity and NaN become null, and the folder is created if it is missing.

    Args:
        path: file to write.
        data: JSON values; tuples count as lists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(data), indent=1, allow_nan=False) + "\n", "utf-8")


def finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON cannot represent, by None.

    Args:
        value: mapping, list, tuple or number, nested as JSON values are.

    Returns:
        The value with dicts and lists in place of mappings and tuples.

    Example:
        >>> finite({"psnr": float("inf"), "ms": (1.5, 2.0)})
        {'psnr': None, 'ms': [1.5, 2.0]}
    """
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
