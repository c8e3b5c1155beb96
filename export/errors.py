"""Exceptions of the export. One base, so that a command can catch the family."""

from __future__ import annotations

__all__ = ["EngineError", "ExportError", "GraphError", "ParityError", "TargetError"]


class ExportError(Exception):
    """Base of the family. The message is one line: what failed, with which value, and what to do."""


class TargetError(ExportError):
    """A target, compute capability or profile that cannot be built, found before the build starts."""


class GraphError(ExportError):
    """A module that cannot be traced, or an ONNX graph that is not valid."""


class EngineError(ExportError):
    """An engine that could not be built.

    Args:
        message: one line.
        log: output of the library during the build, which `--debug` shows with the traceback.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
        if log:
            self.add_note(log)  # a traceback shows it


class ParityError(ExportError):
    """A result below its threshold: the exported files do not compute what PyTorch computes."""
