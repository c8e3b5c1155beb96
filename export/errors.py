"""What can go wrong on the way from a checkpoint to a bundle. One base, so that a command can catch the family."""

from __future__ import annotations


class ExportError(Exception):
    """Base of the family. The message is one line: what failed, with what value, and what to do."""


class TargetError(ExportError):
    """A target, a compute capability or a profile that cannot be built, known before the build starts."""


class GraphError(ExportError):
    """A module that could not be traced, or an ONNX graph that is not what it should be."""


class EngineError(ExportError):
    """An engine that could not be built.

    log: everything that the library said during the build, for `--debug`; empty where it said nothing.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
        if log:
            self.add_note(log)  # a traceback shows it


class ParityError(ExportError):
    """A figure over its budget: what was exported does not compute what PyTorch computes."""
