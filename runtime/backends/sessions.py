"""What ONNX Runtime and OpenVINO have in common: a session for each component and condition, opened when needed."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import unknown
from ..manifest import Precision
from ..merge import merge
from . import kept_sessions

__all__ = ["Sessions"]


class Sessions(ABC):
    """Base of a backend whose sessions threads may share. A condition replaces values of the one merged graph.

    Of merged sessions the last used are kept, as many as `kept_sessions` allows.
    """

    def __init__(self, bundle: Bundle, files: Precision) -> None:
        self.conditions = ("auto", *bundle.manifest.conditions)
        self._bundle, self._files = bundle, files
        self._sessions: dict[str, Any] = {}
        self._merged: OrderedDict[str, Any] = OrderedDict()
        self._kept = kept_sessions(bundle.manifest.files[files.weights["unet_merged"]].bytes)
        self._lock = threading.Lock()

    @abstractmethod
    def _open(self, component: str, values: dict[str, np.ndarray]) -> Any:
        """A session of a component's graph with `values` in place of its initializers of the same names.

        `values` is its own: it may take entries out when it needs them no longer.
        """

    def chain(self, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """See `Backend.chain`. Nothing is shared between runs here, so that threads need not wait."""
        return nullcontext()

    def stopwatch(self) -> Callable[[], float]:
        """See `Backend.stopwatch`. `run` returns when all is done, so that the clock of the CPU will do."""
        start = time.perf_counter()
        return lambda: time.perf_counter() - start

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            self._sessions.clear()
            self._merged.clear()

    def _session(self, component: str, condition: str | None) -> Any:
        with self._lock:
            if component != "unet_merged":
                if component not in self._sessions:
                    self._sessions[component] = self._open(component, {})
                return self._sessions[component]
            if condition is None or condition not in self._bundle.manifest.conditions:
                raise unknown("condition", condition, self._bundle.manifest.conditions)
            if condition not in self._merged:
                while len(self._merged) >= self._kept:  # before the next is opened: two at once may be too large
                    self._merged.popitem(last=False)
                self._merged[condition] = self._open(component, self._values(condition))
            self._merged.move_to_end(condition)
            return self._merged[condition]

    def _values(self, condition: str) -> dict[str, np.ndarray]:
        """The merged weights and biases of a condition. The memory map of the stored ones ends with this call."""
        manifest = self._bundle.manifest
        stored = self._bundle.tensors(self._files.weights["unet_merged"])
        return merge(stored, manifest.merge, self._bundle.modulation(condition))
