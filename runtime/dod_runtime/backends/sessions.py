"""What ONNX Runtime and OpenVINO have in common: sessions that are opened when needed, and how many are kept."""

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
from ..errors import unknown
from ..threads import for_each
from .base import Shapes, kept_sessions
from .mapped import allocate, releases_pages

__all__ = ["Sessions"]

LARGE = 1 << 30
"""Bytes of a UNet's weights from which memory is dearer than the hundredth of the time that giving it back takes."""


class Sessions(ABC):
    """Base of a backend whose sessions threads may share. A condition replaces values of the one merged graph.

    Of each component the last used are kept, as many as `kept_sessions` allows: of the merged UNet for the conditions,
    of others for the shapes that they were opened for, but one alone where the UNet's weights are `LARGE`.
    """

    def __init__(self, bundle: Bundle, files: PrecisionFiles) -> None:
        self.conditions = ("auto", *bundle.manifest.conditions)
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
        """A session of a component's graph with `values`, as `allocate` gives them, in place of its initializers of the
        same names. shapes: of the inputs, in their order, where the session is to serve no other; else none.
        """

    def open(self, path: Mapping[str, Shapes], condition: str | None = None) -> None:
        """See `Backend.open`. Side by side, the largest first: the libraries compile on one core each."""

        def one(component: str) -> None:
            self._session(component, condition, self._fixed(component, path[component]))

        for_each(one, sorted(path, key=lambda component: -self._sizes[component]))

    def _fixed(self, component: str, shapes: Shapes) -> Shapes:
        """Those of the inputs' shapes that a session is made for: of most components none, and it serves all."""
        return ()

    def chain(self, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """See `Backend.chain`. Nothing is shared between runs here, so that threads need not wait."""
        return nullcontext()

    def stopwatch(self) -> Callable[[], float]:
        """See `Backend.stopwatch`. `run` returns when all is done, so that the clock of the CPU will do."""
        start = time.perf_counter()
        return lambda: time.perf_counter() - start

    def close(self) -> None:
        """See `Backend.close`."""
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
                    self._bundle.hash_ahead(self._files.onnx["decoder"])  # which follows
                values = self._merged(key[0]) if key[0] else {}
                # What is smaller is read several times meanwhile, and was read from the disk anew each time.
                with self._sparing(self._bundle.folder, meanwhile=self._sizes[component] >= LARGE):
                    opened[key] = self._open(component, values, shapes)
            opened.move_to_end(key)
            return opened[key]

    def _merged(self, condition: str) -> dict[str, np.ndarray]:
        # The bundle's own pages stay meanwhile: two threads read them, and what is taken away comes from the disk anew.
        with self._sparing(None):
            return self._bundle.merged(self._files, condition, partial(allocate, on_disk=self._large))

    def _sparing(self, folder: Path | None, meanwhile: bool = True) -> AbstractContextManager[None]:
        """Surrounds merging, opening and running: keeps no pages of mapped weights of gigabytes, see `shed`."""
        return releases_pages(folder, meanwhile) if self._large else nullcontext()
