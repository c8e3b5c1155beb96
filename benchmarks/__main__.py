"""`dod-bench COMMAND ...`: every benchmark under one name; `python benchmarks/COMMAND.py ...` runs the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dod.errors import DODError
from dod_runtime.console import Command, run_group
from export.errors import ExportError

__all__ = ["COMMANDS", "run"]

COMMANDS = (
    Command("latency", "benchmarks.latency", "latency of PyTorch and every backend, with parity checks"),
    Command("memory", "benchmarks.memory", "peak memory and opening time of the CPU backends"),
    Command("quality", "benchmarks.quality", "PSNR and SSIM on degraded photographs, with images and a contact sheet"),
    Command("softness", "benchmarks.softness", "PSNR on sharp, soft, resized and compressed images"),
    Command("tiles", "benchmarks.tiles", "difference between tiled and whole restoration"),
    Command("graphs", "benchmarks.graphs", "cost of single graphs, and of conditional LoRA in the UNet"),
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        Exit code of the process: 0 on success, 1 where a parity check failed, 2 for a usage error.
    """
    return run_group("dod-bench", "Measure a bundle on this machine.", COMMANDS, argv, also=(DODError, ExportError))


if __name__ == "__main__":
    sys.exit(run())
