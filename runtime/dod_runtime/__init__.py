"""Restore images with a bundle of `dod-export build`. Needs numpy, Pillow and one backend, but no torch.

Importing this package loads no backend. The logger `dod_runtime` reports the chosen backend.

Example:
    >>> from dod_runtime import Restorer
    >>> with Restorer("build/mini") as restorer:  # doctest: +SKIP
    ...     restorer.restore("street.jpg").save("restored.png")
"""

from __future__ import annotations

import logging
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
    from .backends.base import BackendInfo
    from .bundle.bundle import Bundle
    from .restoration import Restoration
    from .restorer import Restorer

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "BackendInfo",
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

_LAZY = {
    "BackendInfo": ".backends.base",
    "Bundle": ".bundle.bundle",
    "Restoration": ".restoration",
    "Restorer": ".restorer",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library prints nothing by itself


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
