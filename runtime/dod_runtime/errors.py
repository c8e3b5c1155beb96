"""Exceptions of the runtime. All derive from `DODRuntimeError`, so that an application catches one class."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BackendError",
    "BundleError",
    "BundleNotFoundError",
    "DODRuntimeError",
    "ImageError",
    "ImageWarning",
    "UsageError",
    "unknown",
]


class DODRuntimeError(Exception):
    """Base class of all errors of the runtime.

    The message is one line. It says what failed, with which value, and what to do about it.
    """


class ImageError(DODRuntimeError):
    """An image that cannot be read, restored or written."""


class BundleError(DODRuntimeError):
    """A bundle that is missing, incomplete, damaged or of another schema."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """A bundle folder that does not exist, or a folder without `bundle.json`.

    `errno`, `strerror` and `filename` are None: the message says everything.
    """


class BackendError(DODRuntimeError):
    """A backend that is unavailable on this machine, or that failed while it ran."""


class UsageError(DODRuntimeError, ValueError):
    """An invalid request: an unknown condition, precision or backend, or an argument out of range."""


class ImageWarning(UserWarning):
    """A part of an image, such as its 16-bit depth, that restoration does not keep."""


def unknown(kind: str, value: object, valid: Iterable[str]) -> UsageError:
    """Return the error for a name that is not one of the valid ones. It suggests the nearest valid name.

    Args:
        kind: what the name stands for, such as `condition`.
        value: the name that was given.
        valid: names to choose from.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(unknown("condition", "hase", ["auto", "haze", "rain"]))
        unknown condition 'hase' (did you mean 'haze'?): choose one of auto, haze, rain
    """
    names = list(valid)
    near = get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UsageError(f"unknown {kind} {value!r}{hint}: choose one of {', '.join(names) or '(none)'}")
