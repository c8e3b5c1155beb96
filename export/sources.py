"""Hashes of the source code that computed an artifact: one for each room, a package folder, of the project.

A change of a module makes all files stale that its room computes. Only modules of packages count: `runtime/build`,
`dist` and `__pycache__`, which an installation leaves, hold none.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["MODEL", "hash_sources", "package_sources", "room_sources"]

MODEL = ("dod/*.py", "dod/model", "export/graphs")
"""Rooms that decide a model's graphs and weights files: the loaded model, and what simplifies and traces it."""


def hash_sources(*rooms: str) -> str:
    """Return one hash over the paths and contents of the modules of some rooms.

    Args:
        *rooms: see `room_sources`.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for room in rooms:
        top = _package_folder(room.partition("/")[0])
        for path in room_sources(room):
            digest.update(path.relative_to(top.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def room_sources(room: str) -> list[Path]:
    """Return the modules of a room.

    Args:
        room: a package folder with its subpackages (`"export/graphs"`, `"dod_runtime"`), the modules of a folder alone
            (`"dod/*.py"`), or one module (`"export/steps/parity.py"`).

    Returns:
        Paths of its modules, sorted.

    Raises:
        FileNotFoundError: there is no such room.
    """
    top, _, rest = room.partition("/")
    folder = _package_folder(top)
    if rest.endswith(".py"):
        found = sorted(folder.glob(rest))
    elif (folder / rest).is_dir():
        found = package_sources(folder / rest)
    else:
        found = []
    if not found:
        raise FileNotFoundError(2, "no such room", str(folder / rest))
    return found


def package_sources(folder: Path) -> list[Path]:
    """Return the modules of a package and of its subpackages, sorted.

    Args:
        folder: the package's folder. A folder in it that has no `__init__.py` is not a subpackage.
    """
    inside = [each for each in sorted(folder.iterdir()) if (each / "__init__.py").is_file()]
    return [*sorted(folder.glob("*.py")), *(source for each in inside for source in package_sources(each))]


@cache
def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(2, "no such package", package)
    return Path(spec.origin).resolve().parent
