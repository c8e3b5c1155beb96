"""A probe for every intermediate result of a model, each under its own name.

Hooks on modules miss values that are computed between modules: sums of residual branches, products of gates, and the
scores inside an attention. The probe therefore intercepts every torch function; hooks only tell the current module.
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

__all__ = ["Operation", "Probe", "sample_positions"]

_NO_COMPUTATION = {
    *("__getitem__", "cat", "chunk", "clone", "contiguous", "dropout", "expand", "flatten", "float", "interpolate"),
    *("pad", "permute", "repeat", "reshape", "split", "squeeze", "stack", "to", "transpose", "type", "unbind"),
    *("unflatten", "unsqueeze", "view", "zeros_like", "new_tensor", "tensor", "arange", "type_as", "half"),
}
"""Names of torch functions that move, cast or create values instead of computing them."""
_SCORE_ROWS = 256
"""Rows of an attention's score matrix that are computed at a time."""


@dataclass(frozen=True)
class Operation:
    """One intermediate result.

    Attributes:
        name: Module and torch function, for example `unet.conv_in conv2d`; `#2` is appended in a second call.
        stack: Modules that are being called, the component first.
    """

    name: str
    stack: tuple[str, ...]


OnResult = Callable[[Operation, Tensor], None]


class Probe(TorchFunctionMode):
    """Context that reports each floating-point result of the model's components.

    Args:
        model: The model that runs inside the block.
        on_result: Function that is called with each operation and its result.
        scores: Also compute and report the scaled products of queries and keys in each attention, in blocks of rows.
    """

    def __init__(self, model: DOD, on_result: OnResult, scores: bool = False) -> None:
        super().__init__()
        self.on_result, self.scores = on_result, scores
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
        if (
            self._stack
            and isinstance(result, Tensor)
            and result.is_floating_point()
            and function not in _NO_COMPUTATION
        ):
            name = f"{self._stack[-1]} {function}"
            self._calls[name] += 1
            name += f"#{self._calls[name]}" if self._calls[name] > 1 else ""
            stack = tuple(self._stack)
            if self.scores and function == "scaled_dot_product_attention":
                self._report_scores(Operation(f"{self._stack[-1]} scores", stack), *args[:2], **(kwargs or {}))
            self.on_result(Operation(name, stack), result)
        return result

    def _report_scores(self, operation: Operation, query: Tensor, key: Tensor, **rest: Any) -> None:
        scale = rest.get("scale") or query.shape[-1] ** -0.5
        for rows in query.float().split(_SCORE_ROWS, dim=-2):
            self.on_result(operation, (rows * scale) @ key.float().transpose(-2, -1))


@lru_cache(maxsize=256)
def sample_positions(count: int, limit: int) -> Tensor:
    """Choose random elements of a flat tensor, the same in every call.

    Args:
        count: Elements of the tensor.
        limit: Maximum number of elements to choose.

    Returns:
        Indices, int64 [min(count, limit)].

    Example:
        >>> sample_positions(3, 10)
        tensor([0, 1, 2])
    """
    if count <= limit:
        return torch.arange(count)
    return torch.randint(count, (limit,), generator=torch.Generator().manual_seed(count))
