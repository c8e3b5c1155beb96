"""The example that measures latency and reads the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.conftest import Example

SCRIPT = "06_benchmark_and_read_the_report/benchmark.py"


@pytest.mark.slow
def test_the_fastest_model_of_each_path_is_named(run_example: Example, tiny_bundle: Path, tmp_path: Path) -> None:
    options = "--conditions", "auto", "noise", "--size", 64, "--runs", 2, "--warmup", 0.01, "--num-threads", 1
    done = run_example(SCRIPT, "--bundle", tiny_bundle, "--json", tmp_path / "latency.json", *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for path in ("auto", "noise"):
        (line,) = [line for line in lines if line.startswith(f"{path}: ")]
        assert " ms, " in line and line.endswith(" x PyTorch")
    report = (tiny_bundle / "report.md").read_text().splitlines()
    assert lines[-5:] == report[:5]


def test_a_missing_bundle_is_one_line(run_example: Example, tmp_path: Path) -> None:
    done = run_example(SCRIPT, "--bundle", tmp_path / "none")
    assert done.returncode == 2 and "none" in done.stderr and done.stderr.count("\n") == 1
