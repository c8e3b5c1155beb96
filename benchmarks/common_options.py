"""Options that several benchmarks share, and checks of their values."""

from __future__ import annotations

import argparse
from argparse import Namespace, _ArgumentGroup
from pathlib import Path

from benchmarks.photographs import SCIKIT_IMAGE
from dod_runtime.console import Parser
from dod_runtime.errors import UsageError

__all__ = [
    "BUNDLE",
    "IMAGE",
    "add_bundle",
    "add_image",
    "add_photographs",
    "add_runtime",
    "benchmark_parser",
    "check_at_least_one",
]

BUNDLE = Path("build/mini")
IMAGE = Path(__file__).parents[1] / "docs" / "samples" / "noise.png"


def benchmark_parser(name: str, description: str) -> Parser:
    """Return the parser of a benchmark, without options of its own.

    Args:
        name: subcommand of `dod-bench`.
        description: text whose first line describes the command, such as the module's docstring.

    Returns:
        A parser that has the common options.
    """
    return Parser(prog=f"dod-bench {name}", description=description.split("\n")[0])


def add_bundle(group: _ArgumentGroup) -> None:
    """Add `--bundle`.

    Args:
        group: group of options that gets it.
    """
    group.add_argument(
        "--bundle",
        type=Path,
        default=BUNDLE,
        metavar="FOLDER",
        help="folder of the bundle to measure (default: %(default)s)",
    )


def add_image(group: _ArgumentGroup) -> None:
    """Add `--image`.

    Args:
        group: group of options that gets it.
    """
    group.add_argument(
        "--image",
        type=Path,
        default=IMAGE,
        metavar="FILE",
        help=f"image whose center square is resized to --size (default: docs/samples/{IMAGE.name})",
    )


def add_photographs(group: _ArgumentGroup, size: int | None) -> None:
    """Add the options that choose clean photographs: `--photographs`, `--limit`, `--seed`, and `--size`.

    Args:
        group: group of options that gets them.
        size: default of `--size` in pixels, or None for a command whose `--size` differs.
    """
    group.add_argument(
        "--photographs",
        nargs="+",
        default=[SCIKIT_IMAGE],
        metavar="FOLDER",
        help=f"folders of clean photographs, or {SCIKIT_IMAGE} for its own (default: {SCIKIT_IMAGE})",
    )
    group.add_argument("--images", nargs="+", dest="photographs", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    group.add_argument("--limit", type=int, metavar="N", help="number of photographs of each folder (default: all)")
    if size is not None:
        group.add_argument(
            "--size",
            type=int,
            default=size,
            metavar="PIXELS",
            help="longest side of an image in pixels; larger photographs are cropped (default: %(default)s)",
        )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the degradations (default: %(default)s)"
    )


def add_runtime(group: _ArgumentGroup) -> None:
    """Add the options of the restorer: `--backend`, `--precision` and `--num-threads`.

    Args:
        group: group of options that gets them.
    """
    group.add_argument(
        "--backend", default="auto", metavar="NAME", help="backend of the runtime (default: %(default)s)"
    )
    group.add_argument(
        "--precision",
        default="auto",
        metavar="NAME",
        help="precision to compute in: auto, fp32, fp16 or bf16 (default: %(default)s)",
    )
    group.add_argument("--num-threads", type=int, metavar="N", help="number of CPU threads (default: all cores)")


def check_at_least_one(arguments: Namespace, *names: str) -> None:
    """Check that numbers are 1 or more; a number that was not given (None) passes.

    Args:
        arguments: parsed arguments.
        *names: names of the options, without dashes in front. A value may be a list.

    Raises:
        UsageError: a number is less than 1.
    """
    for name in names:
        value = getattr(arguments, name.replace("-", "_"))
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < 1:
                raise UsageError(f"--{name} must be at least 1, not {number:g}")
