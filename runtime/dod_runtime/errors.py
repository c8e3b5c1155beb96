"""The errors of the runtime: one family, so that an application catches one class."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["BackendError", "BundleError", "DODRuntimeError", "ImageError", "ImageWarning", "UsageError", "unknown"]


class DODRuntimeError(Exception):
    """Base of the family. Its text is one line: what failed, with what value, and what to do."""


class ImageError(DODRuntimeError):
    """An image that cannot be read, restored or written."""


class BundleError(DODRuntimeError):
    """A bundle that is absent, incomplete, altered or of another schema."""


class BackendError(DODRuntimeError):
    """A backend that cannot run here, or that failed while running."""


class UsageError(DODRuntimeError):
    """A request that makes no sense: an unknown condition, precision or target, a wrong argument."""


class ImageWarning(UserWarning):
    """Something of an image is lost although it can be restored."""


def unknown(kind: str, value: object, valid: Iterable[str]) -> UsageError:
    """The `UsageError` for a name that is not one of `valid`, with the nearest valid name where there is one."""
    names = list(valid)
    near = get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UsageError(f"unknown {kind} {value!r}{hint}: choose one of {', '.join(names) or '(none)'}")
