"""Options that several benchmarks share."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.common_options import add_photographs, add_runtime, benchmark_parser, check_at_least_one
from benchmarks.photographs import SCIKIT_IMAGE
from dod_runtime.errors import UsageError


def test_photographs_may_be_named_images() -> None:
    parser = benchmark_parser("quality", "Quality.")
    group = parser.add_argument_group("input")
    add_photographs(group, 512)
    add_runtime(group)
    assert parser.prog == "dod-bench quality" and "--images" not in parser.format_help()
    assert parser.parse_args([]).photographs == [SCIKIT_IMAGE] and parser.parse_args([]).size == 512
    for option in ("--photographs", "--images"):
        arguments = parser.parse_args([option, "a", "b", "--threads", "2"])
        assert arguments.photographs == ["a", "b"] and arguments.num_threads == 2


def test_numbers_are_at_least_one() -> None:
    arguments = Namespace(size=[64, 128], limit=None, batch_size=0, path=Path())
    check_at_least_one(arguments, "size", "limit")
    with pytest.raises(UsageError, match="--batch-size .*1, not 0"):
        check_at_least_one(arguments, "size", "batch-size")
    arguments.size = [64, -1]
    with pytest.raises(UsageError, match="--size .*-1"):
        check_at_least_one(arguments, "size")
