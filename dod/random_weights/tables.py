"""Statistics of layers and checkpoints as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from statistics import median

__all__ = ["LayerStatistics", "by_block", "say", "summary"]

LayerStatistics = dict[str, dict[str, tuple[float, float]]]
"""Standard deviation and largest magnitude of each layer's output, by part and layer."""

_BLOCK = re.compile(
    r"^(?:encoder\.|decoder\.)?(?:(?:down|up)_blocks\.\d+|mid_block|(?:input|output)_blocks|middle_block)"
)


def say(text: str) -> None:
    """Print a line and flush, so that a log file shows progress.

    Args:
        text: the line.
    """
    print(text, flush=True)


def by_block(statistics: LayerStatistics) -> str:
    """Return a table of the standard deviations and the largest magnitude in each block.

    Args:
        statistics: statistics of the layers.
    """
    lines = [f"{'standard deviation of outputs':<36}{'layers':>7}{'min':>9}{'median':>9}{'max':>9}{'largest':>10}"]
    for part, layers in statistics.items():
        for block, names in _blocks(layers):
            deviations = [layers[name][0] for name in names]
            largest = max(layers[name][1] for name in names)
            low, middle, high = min(deviations), median(deviations), max(deviations)
            label = f"{part} {block}"
            lines.append(f"{label:<36}{len(names):>7}{low:>9.3f}{middle:>9.3f}{high:>9.3f}{largest:>10.1f}")
    return "\n".join(lines)


def summary(measured: Mapping[str, float]) -> str:
    """Return one line for each measurement of a checkpoint.

    Args:
        measured: measurements by name.
    """
    return "\n".join(f"  {name:<36}{value:>9.4f}" for name, value in measured.items())


def _blocks(layers: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """Yield blocks and the names of their layers, in the order of the model. Other layers are grouped by module."""
    blocks: dict[str, list[str]] = {}
    for name in layers:
        match = _BLOCK.match(name)
        blocks.setdefault(match[0] if match else re.sub(r"\.(linear_)?\d+$", "", name), []).append(name)
    yield from blocks.items()
