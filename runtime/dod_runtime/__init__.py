"""Restores photographs with a bundle made by `export/build_engines.py`. Needs numpy, pillow and one backend.

    from dod_runtime import Restorer

    with Restorer("build/mini") as restorer:
        restorer.restore("street.jpg").save("restored.png")

Nothing is loaded before it is used: importing this package loads no backend, and never torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BackendError,
    BundleError,
    BundleNotFoundError,
    DODRuntimeError,
    ImageError,
    ImageWarning,
    UsageError,
)

if TYPE_CHECKING:
    from .bundle.bundle import Bundle
    from .restorer import Restoration, Restorer

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "BundleNotFoundError",
    "DODRuntimeError",
    "ImageError",
    "ImageWarning",
    "Restoration",
    "Restorer",
    "UsageError",
]

_LAZY = {"Bundle": ".bundle.bundle", "Restoration": ".restorer", "Restorer": ".restorer"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
