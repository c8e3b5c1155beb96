"""Engines that are the same whenever they are built: the surroundings of the builder's processes, fixed.

TensorRT-RTX numbers and orders parts of an engine by memory addresses. Two builds of one graph give the same bytes only
where processes get the same addresses (no address space layout randomization) and allocate the same sizes: the paths
that they are given must have the same length, and their environment must be the same.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["builder_environment", "fixed_addresses", "fixed_length_links"]

ADDR_NO_RANDOMIZE = 0x0040000
"""Flag of `personality(2)` on Linux. Processes inherit it, and obey it from their start."""
CURRENT = 0xFFFFFFFF
KEPT = ("CUDA", "HOME", "LANG", "LC_", "LD_", "NVIDIA", "PATH", "PYTHON", "SYSTEMROOT", "TEMP", "TMP", "TRT")
"""Beginnings of the names of environment variables that a builder may need."""


def builder_environment() -> dict[str, str]:
    """Return the environment of a builder's process: what it may need, and a fixed order of Python's sets."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    return {**kept, "PYTHONHASHSEED": "0"}


@contextmanager
def fixed_addresses() -> Iterator[None]:
    """Start processes without address space layout randomization inside the block, where the system allows it."""
    personality = None
    with suppress(OSError, AttributeError, TypeError):  # no Linux
        personality = ctypes.CDLL(None).personality
    before = personality(CURRENT) if personality else -1
    if personality and before >= 0:
        personality(before | ADDR_NO_RANDOMIZE)  # -1, and nothing changed, where a sandbox forbids it
    try:
        yield
    finally:
        if personality and before >= 0:
            personality(before)


@contextmanager
def fixed_length_links(*folders: Path) -> Iterator[list[Path]]:
    """Give folders paths whose length does not depend on where they are.

    Args:
        *folders: existing folders.

    Yields:
        For each folder a symbolic link in a temporary folder, which exists inside the block.
    """
    with tempfile.TemporaryDirectory(prefix="dod-") as parent:
        links = [Path(parent) / str(i) for i in range(len(folders))]
        for link, folder in zip(links, folders, strict=True):
            link.symlink_to(folder.absolute(), target_is_directory=True)
        yield links
