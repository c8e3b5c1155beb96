"""Atomic writes, and file permissions that follow the umask."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["apply_umask", "atomic_write", "current_umask", "follows_umask"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Replace a file as a whole: the block writes a temporary file, which takes the place of `path` at its end.

    Readers see the former content or the new one, never a part of it. If the block raises, the temporary file is
    deleted and `path` stays as it was. A new file gets the permissions that the umask allows, also if the block
    creates it with others, as some libraries do. A file that is replaced keeps its permissions.

    Args:
        path: file to write. Its folder must exist.

    Yields:
        Path of the temporary file, in the folder of `path`. The block must create it.

    Raises:
        OSError: the file cannot be written or replaced. The error names `path`, not the temporary file.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with atomic_write(folder / "notes.txt") as temporary:
        ...     _ = temporary.write_text("complete")
        >>> [file.name for file in folder.iterdir()]
        ['notes.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short: a long name of `path` leaves no room
    try:
        yield temporary
        if path.is_file():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        else:
            apply_umask(temporary, current_umask())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None and os.fspath(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def current_umask() -> int:
    """Return the umask of this process.

    Linux shows it in `/proc`. Elsewhere it can only be read by setting it, which other threads notice for a moment.

    Returns:
        The permission bits that new files and folders do not get.
    """
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def follows_umask(path: Path, umask: int) -> bool:
    """Return True if a file or folder has the permissions that a new one gets.

    Args:
        path: existing file or folder.
        umask: permission bits that new files do not get; see `current_umask`.

    Returns:
        True if read, write and execute permissions are equal. Set-ID and sticky bits are ignored.
    """
    mode = path.stat().st_mode
    return stat.S_IMODE(mode) & 0o777 == _permissions(mode, umask)


def apply_umask(path: Path, umask: int) -> None:
    """Give a file or folder the permissions that a new one gets. Set-ID and sticky bits stay.

    Does nothing on Windows.

    Args:
        path: existing file or folder.
        umask: permission bits that new files do not get; see `current_umask`.

    Raises:
        OSError: the file belongs to another user.
    """
    if os.name != "nt" and not follows_umask(path, umask):
        mode = path.stat().st_mode
        path.chmod(stat.S_IMODE(mode) & 0o7000 | _permissions(mode, umask))


def _permissions(mode: int, umask: int) -> int:
    return (0o777 if stat.S_ISDIR(mode) else 0o666) & ~umask
