"""What each graph costs to run: operators, parameters, multiply-adds and bytes, counted on the structure alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dod.model.dod import DOD
from dod_runtime.console import table
from export.graphs import components

SIDE = 512
"""Pixels of the square image that is counted, one of it."""


@dataclass(frozen=True)
class Cost:
    """Of one image. operators: calls of ATen operators that compute something (views do not); parameters: numbers the
    graph needs; multiply_adds: of convolutions, matrix products and attention; bytes: what the operators read and write
    one by one in float32, weights included: a ceiling, for a backend fuses some of them."""

    operators: int
    parameters: int
    multiply_adds: int
    bytes: int


def costs(meta_copy: DOD, folded: bool = True) -> dict[str, Cost]:
    """The cost of each graph for an image of `SIDE` px. skeleton: a model on the meta device. folded: as it is traced;
    otherwise the merged UNet as merging leaves it."""
    return {
        name: cost(components.plan(meta_copy, name, 1, (SIDE, SIDE), folded))
        for name in components.graphs_of(meta_copy)
    }


@torch.no_grad()
def cost(planned: components.GraphPlan) -> Cost:
    """Count one call of a graph."""
    seen, flops = _Seen(), FlopCounterMode(display=False)
    with flops, seen:
        planned.module(**planned.inputs)
    used = {id(tensor): tensor.numel() for tensor in planned.module.parameters() if id(tensor) in seen.touched}
    return Cost(seen.operators, sum(used.values()), flops.get_total_flops() // 2, seen.bytes)


def rows(before: Mapping[str, Cost], after: Mapping[str, Cost]) -> dict[str, dict[str, Any]]:
    """Both, for JSON."""
    return {name: {"before": asdict(before[name]), "after": asdict(after[name])} for name in after}


def section(figures: Mapping[str, Mapping[str, Any]], markdown: bool = True) -> str:
    """A table: each graph before and after the exact simplifications, and its share of the multiply-adds of `auto`."""
    whole = sum(each["after"]["multiply_adds"] for name, each in figures.items() if name != "unet_merged")
    cells = []
    for name, each in figures.items():
        before, after = each["before"], each["after"]
        pairs = [
            _pair(before["operators"], after["operators"], 1, "d"),
            _pair(before["parameters"], after["parameters"], 1e6, ".2f"),
            _pair(before["multiply_adds"], after["multiply_adds"], 1e9, ".2f"),
            _pair(before["bytes"], after["bytes"], 1e6, ".0f"),
        ]
        cells.append([name, *pairs, f"{100 * after['multiply_adds'] / whole:.0f} %"])
    headers = ["graph", "operators", "parameters, M", "multiply-adds, G", "MB moved", "share of `auto`"]
    return table(headers, cells, "lrrrrr", markdown=markdown)


def _pair(before: float, after: float, unit: float, form: str) -> str:
    first, second = (format(int(value) if form == "d" else value / unit, form) for value in (before, after))
    return first if first == second else f"{first} → {second}"


class _Seen(TorchDispatchMode):
    """Counts the operators that compute, what they move, and the tensors that they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0
        self.touched: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.touched.update(id(each) for each in given)
        views = all(each.alias_info is not None for each in func._schema.returns)
        if not views:
            self.operators += 1
            made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in (*given, *made))
        return result
