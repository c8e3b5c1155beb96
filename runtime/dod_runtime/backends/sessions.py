"""Sessions of ONNX Runtime and OpenVINO: opened when they are needed, and kept as long as memory allows."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.schema import PrecisionFiles
from ..condition_path import AUTO
from ..errors import unknown
from ..threads import for_each
from .base import Shapes, kept_sessions
from .mapped import allocate, releasing_pages

__all__ = ["LARGE", "Sessions"]

LARGE = 1 << 30
"""UNet size in bytes from which mapped pages are released after use: less memory for about 1 % of the speed."""


class Sessions(ABC):
    """Base class of backends with sessions that threads may share. A condition replaces values of the merged graph.

    The last used sessions of each component are kept, as many as `kept_sessions` allows: those of the merged UNet by
    condition, those of other components by the shapes that they were opened for. Where the weights of the UNet are
    `LARGE`, one session of each other component is kept.

    Args:
        bundle: the bundle to run.
        files: the files of one of its precisions.
    """

    def __init__(self, bundle: Bundle, files: PrecisionFiles) -> None:
        self.conditions = (AUTO, *bundle.manifest.conditions)
        self._bundle, self._files = bundle, files
        self._sizes = {component: bundle.manifest.files[file].bytes for component, file in files.weights.items()}
        self._large = self._sizes["unet_merged"] >= LARGE
        self._kept = {component: kept_sessions(size) for component, size in self._sizes.items()}
        if self._large:
            self._kept |= {component: 1 for component in self._sizes if component != "unet_merged"}
        self._sessions: defaultdict[str, OrderedDict[tuple[str | None, Shapes], Any]] = defaultdict(OrderedDict)
        self._locks = {component: threading.Lock() for component in self._sizes}

    @abstractmethod
    def _open(self, component: str, values: dict[str, np.ndarray], shapes: Shapes) -> Any:
        """Return a session of a component.

        `values`, arrays of `allocate`, replace the initializers of the same names. `shapes` are those of the inputs, in
        order, where the session serves no others; else it is empty.
        """

    def open(self, path: Mapping[str, Shapes], condition: str | None = None) -> None:
        """Open the sessions of a path; see `Backend.open`.

        They are opened in parallel, the largest first, because the libraries compile each graph on one core.

        Args:
            path: components of the path, each with the shapes of its inputs.
            condition: condition that is merged into the UNet, None for the dynamic path.
        """

        def open_one(component: str) -> None:
            self._session(component, condition, self._fixed(component, path[component]))

        for_each(open_one, sorted(path, key=lambda component: -self._sizes[component]))

    def _fixed(self, component: str, shapes: Shapes) -> Shapes:
        """Return the input shapes that a session of a component is limited to; most serve all shapes: `()`."""
        return ()

    def batch(self, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """Return an empty context; see `Backend.batch`. Runs share nothing here, so threads need not wait.

        Args:
            shape: shape of the batch.
        """
        return nullcontext()

    def stopwatch(self) -> Callable[[], float]:
        """Start a clock; see `Backend.stopwatch`. `run` returns when its work is done, so the CPU's clock is exact."""
        start = time.perf_counter()
        return lambda: time.perf_counter() - start

    def close(self) -> None:
        """Drop all sessions; see `Backend.close`."""
        with ExitStack() as locked:
            for lock in self._locks.values():
                locked.enter_context(lock)
            self._sessions.clear()

    def _session(self, component: str, condition: str | None, shapes: Shapes = ()) -> Any:
        merged = component == "unet_merged"
        if merged and (condition is None or condition not in self._bundle.manifest.conditions):
            raise unknown("condition", condition, self._bundle.manifest.conditions)
        key = condition if merged else None, shapes
        with self._locks[component]:
            opened = self._sessions[component]
            if key not in opened:
                while len(opened) >= self._kept[component]:  # before the next is opened: two may be too large
                    opened.popitem(last=False)
                if component.startswith("unet"):
                    self._bundle.hash_ahead(self._files.onnx["decoder"])  # the next component of the path
                values = self._merged(key[0]) if key[0] else {}
                # Smaller files are read several times while a session opens; released pages would be read from disk.
                with self._saving_memory(self._bundle.folder, repeatedly=self._sizes[component] >= LARGE):
                    opened[key] = self._open(component, values, shapes)
            opened.move_to_end(key)
            return opened[key]

    def _merged(self, condition: str) -> dict[str, np.ndarray]:
        # Pages of the bundle stay mapped meanwhile: two threads read them, and released pages come from the disk again.
        with self._saving_memory(None):
            return self._bundle.merged(self._files, condition, partial(allocate, on_disk=self._large))

    def _saving_memory(self, folder: Path | None, repeatedly: bool = True) -> AbstractContextManager[None]:
        """Return the context for merging, opening and running: it releases mapped pages where the UNet is `LARGE`."""
        return releasing_pages(folder, repeatedly) if self._large else nullcontext()
