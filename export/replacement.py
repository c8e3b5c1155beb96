"""The bundle that a build replaces: its identity by its `bundle.json`, and when replacing it needs `--force`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.errors import UsageError

__all__ = ["Identity", "check_replacement"]


@dataclass(frozen=True)
class Identity:
    """The model of a bundle, and its conditions.

    Attributes:
        names: the bundle's name and its preset, as far as they are stated.
        layers: N of the modulation [B, N, 2, r], None if it is not stated.
        rank: r of the modulation, None if it is not stated.
        conditions: names of the condition paths.
    """

    names: frozenset[str]
    layers: int | None
    rank: int | None
    conditions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' of '.join(sorted(self.names))} (conditions: {', '.join(self.conditions) or 'auto only'})"


def check_replacement(out: Path, planned: Identity, *, force: bool) -> None:
    """Compare the bundle at `out`, if there is one, with the bundle to build.

    New weights of the same model, other targets and more conditions replace a bundle freely.

    Args:
        out: the bundle's folder.
        planned: identity of the bundle to build.
        force: replace any bundle, and print the reason that would otherwise be the error.

    Raises:
        UsageError: the bundle is of another model, loses conditions, or cannot be identified, and `force` is False.
    """
    if not (out / MANIFEST).is_file():
        return
    reason = _reason(_stated(out / MANIFEST), planned)
    if reason is None:
        return
    if not force:
        raise UsageError(f"--out {out} {reason}: choose another --out, or replace it with --force")
    print(f"replaces {out}, which {reason}", flush=True)


def _reason(before: Identity | None, planned: Identity) -> str | None:
    if before is None:
        return f"holds a bundle whose {MANIFEST} is damaged, so its model is unknown"
    if not before.names:
        return f"holds a bundle whose {MANIFEST} states neither name nor preset, so its model is unknown"
    if before.names != planned.names:
        return f"holds the bundle {before}, another model than {', '.join(planned.names)}"
    shape, new_shape = (before.layers, before.rank), (planned.layers, planned.rank)
    if None not in shape and shape != new_shape:
        sizes = "{} conditional layers of rank {}"
        return f"holds the bundle {before} with {sizes.format(*shape)}, not {sizes.format(*new_shape)}"
    lost = [name for name in before.conditions if name not in planned.conditions]
    if lost:
        return f"holds the bundle {before}, and this build leaves out {', '.join(lost)}"
    return None


def _stated(manifest: Path) -> Identity | None:
    """Read a manifest of any schema, as far as it goes. Returns None if it is not a JSON object."""
    try:
        data = json.loads(manifest.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    names = _get(data, "name"), _get(data, "model", "preset")
    outputs, conditions = _get(data, "components", "mfm", "outputs"), _get(data, "conditions")
    layers = rank = None
    for output in outputs if isinstance(outputs, list) else ():
        shape = _get(output, "shape")
        if _get(output, "name") == "modulation" and isinstance(shape, list) and len(shape) == 4:
            layers, rank = (size if isinstance(size, int) else None for size in (shape[1], shape[3]))
    stated = tuple(map(str, conditions)) if isinstance(conditions, dict | list) else ()
    return Identity(frozenset(name for name in names if isinstance(name, str)), layers, rank, stated)


def _get(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
