"""Permissions of written files and folders: those that the umask allows, whichever library or process wrote them."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["apply_umask", "current_umask", "follows_umask"]


def current_umask() -> int:
    """Return the umask of this process.

    Linux states it without changing it, which is safe beside other threads. Elsewhere it is set for a moment.
    """
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def follows_umask(path: Path, umask: int) -> bool:
    """Return True where a file or folder has the permissions that a new one gets under `umask`."""
    mode = path.stat().st_mode
    return stat.S_IMODE(mode) & 0o777 == _permissions(mode, umask)


def apply_umask(path: Path, umask: int) -> None:
    """Give a file or folder the permissions that a new one gets under `umask`. A set-group-ID bit stays.

    Raises:
        OSError: the file belongs to another user.
    """
    if os.name != "nt" and not follows_umask(path, umask):
        mode = path.stat().st_mode
        path.chmod(stat.S_IMODE(mode) & 0o7000 | _permissions(mode, umask))


def _permissions(mode: int, umask: int) -> int:
    return (0o777 if stat.S_ISDIR(mode) else 0o666) & ~umask
