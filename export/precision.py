"""Half precision with float32 islands, made in the module itself before its one half trace."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from dod.model import DOD
from export.errors import GraphError

ENDS = ("conv_norm_out", "conv_out", "network")
"""What ends a network and hands float32 on, besides the last up block."""


def default_islands(model: DOD) -> tuple[str, ...]:
    """The modules that stay in float32 by default: M, and the end of each residual stream (an error in eps grows 14.6
    times in the closed form)."""
    last = len(model.unet.unet.up_blocks) - 1
    return (
        "mfm.network",
        f"unet.unet.up_blocks.{last}",
        "unet.unet.conv_norm_out",
        "unet.unet.conv_out",
        "decoder.decoder.conv_norm_out",
        "decoder.decoder.conv_out",
    )


def half_copy(model: DOD, islands: Sequence[str] | None = None) -> DOD:
    """A copy of the model as `halve` makes it."""
    return halve(copy.deepcopy(model), islands)


def halve(model: DOD, islands: Sequence[str] | None = None) -> DOD:
    """The model itself, put in float16 but for the named modules (None: the default ones), which stay in float32.

    An island casts its inputs up. One that ends a network hands float32 on, so that nothing is rounded between adjacent
    ones; any other casts its result back to float16. GraphError on a name the model does not have.
    """
    default = default_islands(model)
    islands = default if islands is None else islands
    kept = {name: _submodule(model, name, default) for name in islands}
    inside = {id(tensor) for module in kept.values() for tensor in (*module.parameters(), *module.buffers())}
    for module in model.modules():  # not model.half(): the islands would lose what float16 cannot hold
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in inside and tensor.is_floating_point():
                tensor.data = tensor.data.half()
    for name, module in kept.items():
        module.register_forward_pre_hook(_upcast, with_kwargs=True)
        if not name.endswith(ENDS) and name not in default:
            module.register_forward_hook(_downcast)
    return model


def _submodule(model: DOD, name: str, default: Sequence[str]) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise GraphError(f"no module {name!r} to keep in float32; the defaults are {', '.join(default)}") from None


def _cast(value: object, source: torch.dtype, target: torch.dtype) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(target) if value.dtype == source else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, source, target) for item in value)
    return value


def _upcast(module: nn.Module, args: tuple, kwargs: dict) -> tuple[object, dict]:
    kwargs = {name: _cast(value, torch.float16, torch.float32) for name, value in kwargs.items()}
    return _cast(args, torch.float16, torch.float32), kwargs


def _downcast(module: nn.Module, args: object, output: object) -> object:
    return _cast(output, torch.float32, torch.float16)
