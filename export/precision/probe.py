"""A look at every value that a model computes on its way: each result of each operation, under a name of its own.

Hooks on modules alone would miss what is computed between modules: sums of residual branches, products of gates, and
the scores inside an attention. So a mode sees each call of torch, and hooks only say in which module it happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dod.model.dod import DOD
from export.graphs.fp16 import COMPONENTS

MOVES = {
    *("__getitem__", "cat", "chunk", "clone", "contiguous", "dropout", "expand", "flatten", "float", "interpolate"),
    *("pad", "permute", "repeat", "reshape", "split", "squeeze", "stack", "to", "transpose", "type", "unbind"),
    *("unflatten", "unsqueeze", "view", "zeros_like", "new_tensor", "tensor", "arange", "type_as", "half"),
}
"""Functions that compute no new value (or a constant)."""
SCORE_ROWS = 256


@dataclass(frozen=True)
class Operation:
    """One result on the way. stack: the modules whose calls it happens in, the component first."""

    name: str
    stack: tuple[str, ...]


See = Callable[[Operation, Tensor], None]


class Probe(TorchFunctionMode):
    """Inside the block, `see(operation, result)` hears of each floating-point result of a component of `model`.

    An operation has the name of its module and of torch's function, `#2` where the module calls that again. With
    `scores`, the scaled products of queries and keys inside an attention are computed besides, in blocks of rows.
    """

    def __init__(self, model: DOD, see: See, scores: bool = False) -> None:
        super().__init__()
        self.see, self.scores = see, scores
        self._modules = {name: model.get_submodule(name) for name in COMPONENTS}
        self._stack: list[str] = []
        self._calls: Counter[str] = Counter()
        self._hooks: list[Any] = []

    def __enter__(self) -> Probe:
        named = {id(m): (f"{root}.{name}".rstrip("."), m) for root, part in self._modules.items()
                 for name, m in part.named_modules()}  # fmt: skip
        for name, module in named.values():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            self._hooks.append(module.register_forward_hook(self._leaving))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(name)

        return enter

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        function = getattr(func, "__name__", "")
        if self._stack and isinstance(result, Tensor) and result.is_floating_point() and function not in MOVES:
            name = f"{self._stack[-1]} {function}"
            self._calls[name] += 1
            name += f"#{self._calls[name]}" if self._calls[name] > 1 else ""
            stack = tuple(self._stack)
            if self.scores and function == "scaled_dot_product_attention":
                self._see_scores(Operation(f"{self._stack[-1]} scores", stack), *args[:2], **(kwargs or {}))
            self.see(Operation(name, stack), result)
        return result

    def _see_scores(self, operation: Operation, query: Tensor, key: Tensor, **rest: Any) -> None:
        scale = rest.get("scale") or query.shape[-1] ** -0.5
        for rows in query.float().split(SCORE_ROWS, dim=-2):
            self.see(operation, (rows * scale) @ key.float().transpose(-2, -1))


@lru_cache(maxsize=256)
def positions(count: int, most: int) -> Tensor:
    """At most `most` fixed places in a tensor of `count` elements, spread at random but always the same."""
    if count <= most:
        return torch.arange(count)
    return torch.randint(count, (most,), generator=torch.Generator().manual_seed(count))
