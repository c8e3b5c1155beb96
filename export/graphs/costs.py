"""Costs of each graph: operators, parameters, multiply-adds and bytes, counted on the meta device."""

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

__all__ = ["SIDE", "Cost", "cost", "costs", "rows", "section"]

SIDE = 512
"""Side in pixels of the square image that costs are counted for."""


@dataclass(frozen=True)
class Cost:
    """Cost of one graph for one image.

    Attributes:
        operators: Calls of ATen operators that compute something. Views do not count.
        parameters: Number of weights that the graph uses.
        multiply_adds: Multiply-adds of convolutions, matrix products and attention.
        bytes: Bytes that all operators read and write in float32, weights included. This is an upper bound: a backend
            fuses some of them.
    """

    operators: int
    parameters: int
    multiply_adds: int
    bytes: int


def costs(meta_copy: DOD, folded: bool = True) -> dict[str, Cost]:
    """Count the cost of each graph for one image of `SIDE` x `SIDE` px.

    Args:
        meta_copy: A model on the meta device.
        folded: Simplify the merged UNet as a trace does; otherwise count it as merging leaves it.

    Returns:
        The cost of each of `graphs_of(meta_copy)`.
    """
    return {
        name: cost(components.plan(meta_copy, name, 1, (SIDE, SIDE), folded))
        for name in components.graphs_of(meta_copy)
    }


@torch.no_grad()
def cost(planned: components.GraphPlan) -> Cost:
    """Count one call of a graph with its example inputs.

    Args:
        planned: The graph's plan, on the meta device.

    Returns:
        Its cost. A multiply-add is two of the operations that PyTorch's counter reports.
    """
    counter, flops = _OperatorCounter(), FlopCounterMode(display=False)
    with flops, counter:
        planned.module(**planned.inputs)
    used = {id(tensor): tensor.numel() for tensor in planned.module.parameters() if id(tensor) in counter.touched}
    return Cost(counter.operators, sum(used.values()), flops.get_total_flops() // 2, counter.bytes)


def rows(before: Mapping[str, Cost], after: Mapping[str, Cost]) -> dict[str, dict[str, Any]]:
    """Combine the costs before and after the simplifications for JSON.

    Args:
        before: Cost of each graph of the model as it was loaded.
        after: Cost of each graph of the simplified model.

    Returns:
        For each graph `{"before": ..., "after": ...}` with the fields of `Cost`.
    """
    return {name: {"before": asdict(before[name]), "after": asdict(after[name])} for name in after}


def section(costs: Mapping[str, Mapping[str, Any]], markdown: bool = True) -> str:
    """Format the costs of all graphs as a table.

    Args:
        costs: The result of `rows`.
        markdown: Write a Markdown table, otherwise one for the terminal.

    Returns:
        A row for each graph: its costs before and after, and its share of the multiply-adds of the path `auto`.
    """
    whole = sum(each["after"]["multiply_adds"] for name, each in costs.items() if name != "unet_merged")
    cells = []
    for name, each in costs.items():
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


class _OperatorCounter(TorchDispatchMode):
    """Counter of the operators that compute, the bytes that they move and the tensors that they touch."""

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
