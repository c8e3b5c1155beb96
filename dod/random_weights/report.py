"""What a full-size base was brought to, as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from statistics import median

Figures = Mapping[str, Mapping[str, tuple[float, float]]]
"""Part -> layer -> (deviation, largest magnitude) of what the layer gives."""

_BLOCK = re.compile(
    r"^(?:encoder\.|decoder\.)?(?:(?:down|up)_blocks\.\d+|mid_block|(?:input|output)_blocks|middle_block)"
)


def say(text: str) -> None:
    """A line of progress, at once where the output is a file as well."""
    print(text, flush=True)


def by_block(figures: Figures) -> str:
    """A table: the deviations of the layers of each block, and the largest magnitude that one of them gives."""
    lines = [f"{'deviation of what layers give':<36}{'layers':>7}{'min':>9}{'median':>9}{'max':>9}{'largest':>10}"]
    for part, layers in figures.items():
        for block, names in _blocks(layers):
            deviations = [layers[name][0] for name in names]
            largest = max(layers[name][1] for name in names)
            low, middle, high = min(deviations), median(deviations), max(deviations)
            label = f"{part} {block}"
            lines.append(f"{label:<36}{len(names):>7}{low:>9.3f}{middle:>9.3f}{high:>9.3f}{largest:>10.1f}")
    return "\n".join(lines)


def summary(measured: Mapping[str, float]) -> str:
    """One line for each figure of a checkpoint."""
    return "\n".join(f"  {name:<36}{value:>9.4f}" for name, value in measured.items())


def _blocks(layers: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """(block, its layers) in the order of the model; the layers outside blocks stand alone or with their module."""
    blocks: dict[str, list[str]] = {}
    for name in layers:
        match = _BLOCK.match(name)
        blocks.setdefault(match[0] if match else re.sub(r"\.(linear_)?\d+$", "", name), []).append(name)
    yield from blocks.items()
