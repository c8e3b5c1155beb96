"""Copies of the model in fp16 with chosen modules in fp32. Hooks of the modules cast, so a trace records the casts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dod.model.dod import DOD
from export.errors import GraphError

__all__ = [
    "COMPONENTS",
    "SummedInFloat32",
    "cast_to",
    "check_fp32_modules",
    "converted_copy",
    "default_fp32_modules",
    "fp16_copy",
    "is_inside",
    "network_tails",
]

COMPONENTS = ("mfm", "encoder", "unet", "decoder")
"""Submodules of the model that are converted to fp16."""
_FLOAT32_INPUTS = ("mfm.h_space", "mfm.network", "encoder.encoder.conv_in")
"""Modules that the model always calls with float32. They cast their inputs to fp16 unless they stay in fp32."""
_ALWAYS_FLOAT32 = ("gate", "postprocess")
"""Modules that stay in fp32 in every precision: the decisions about an image, and the blend that they control."""
_NEVER_CALLED = ("encoder.encoder", "decoder.decoder")
"""Modules whose children are called one by one. Hooks on them would never run."""


def default_fp32_modules(model: DOD) -> tuple[str, ...]:
    """Return modules that need no measurement to be kept in fp32.

    They are the modulation network M and the end of each residual stream; the closed form amplifies an error in eps by
    14.6. A build measures its own set, see `export.precision.search`.

    Args:
        model: The model.

    Returns:
        Names of submodules.
    """
    last = len(model.unet.unet.up_blocks) - 1
    return (
        "mfm.network",
        f"unet.unet.up_blocks.{last}",
        "unet.unet.conv_norm_out",
        "unet.unet.conv_out",
        "decoder.decoder.conv_norm_out",
        "decoder.decoder.conv_out",
    )


def check_fp32_modules(model: DOD, fp32_modules: Sequence[str]) -> None:
    """Check that each name is a module that can stay in fp32.

    Args:
        model: The model.
        fp32_modules: Names of submodules.

    Raises:
        GraphError: If the model has no such module, or if it is a container that is never called itself.
    """
    for name in fp32_modules:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            known = ", ".join(default_fp32_modules(model))
            raise GraphError(f"unknown module {name!r} to keep in fp32: name a module such as {known}") from None
        if not name or name in _NEVER_CALLED or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            parts = [f"{name}.{part}".removeprefix(".") for part, _ in module.named_children()]
            raise GraphError(
                f"{name or 'the model'} is a container that is never called: name modules in it, such as {parts}"
            )


def fp16_copy(model: DOD, fp32_modules: Sequence[str] | None = None, dtype: torch.dtype = torch.float16) -> DOD:
    """Copy the model in a 16-bit type, with chosen modules in fp32.

    An fp32 module casts its inputs up and its result back down. The last module of a network, or one that is followed
    only by fp32 modules there, returns float32, so that nothing is rounded in between.

    Args:
        model: The model in fp32. It is left unchanged.
        fp32_modules: Names of the modules that stay in fp32 (None: `default_fp32_modules`).
        dtype: float16 or bfloat16.

    Returns:
        The converted copy.

    Raises:
        GraphError: See `check_fp32_modules`.
    """
    fp32_modules = default_fp32_modules(model) if fp32_modules is None else fp32_modules
    check_fp32_modules(model, fp32_modules)
    outermost = tuple(dict.fromkeys(name for name in fp32_modules if not is_inside(name, set(fp32_modules) - {name})))
    kept = (*outermost, *_ALWAYS_FLOAT32)
    fp16 = converted_copy(model, lambda name, value: value if is_inside(name, kept) else value.to(dtype))
    casts = _Casts(dtype)
    for name in _FLOAT32_INPUTS:
        if not is_inside(name, outermost):
            fp16.get_submodule(name).register_forward_pre_hook(casts.inputs_down, with_kwargs=True)
    if not is_inside("mfm.network", outermost):
        fp16.mfm.network.register_forward_hook(casts.result_up)
    returns_float32 = set(_returning_float32(model, outermost))
    for name in outermost:
        module = fp16.get_submodule(name)
        module.register_forward_pre_hook(casts.inputs_up, with_kwargs=True)
        if name == "encoder":
            module.register_forward_hook(casts.skips_down)
        elif name not in returns_float32:
            module.register_forward_hook(casts.result_down)
    return fp16


def converted_copy(model: DOD, convert: Callable[[str, Tensor], Tensor]) -> DOD:
    """Copy the model with every floating-point parameter and buffer converted.

    Tensors are converted one by one during the copy, so memory never holds a second fp32 copy of the model.

    Args:
        model: The model. It is left unchanged.
        convert: Function from (name, value) to the value in the copy.

    Returns:
        The converted copy.
    """
    memo: dict[int, object] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        converted = convert(name, value.detach()) if value.is_floating_point() else value
        converted = converted.clone() if converted.data_ptr() == value.data_ptr() else converted
        parameter = isinstance(value, nn.Parameter)
        memo[id(value)] = nn.Parameter(converted, value.requires_grad) if parameter else converted
    return copy.deepcopy(model, memo)


def is_inside(name: str, modules: Collection[str]) -> bool:
    """Return True if a module or tensor is one of the modules or part of one.

    Args:
        name: Dotted name of a module or tensor.
        modules: Dotted names of modules.

    Returns:
        True if a prefix of `name` is in `modules`.

    Example:
        >>> is_inside("unet.conv_in.weight", {"unet"}), is_inside("unet2.conv_in", {"unet"})
        (True, False)
    """
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in modules for i in range(len(parts)))


def network_tails(model: DOD) -> tuple[tuple[str, ...], ...]:
    """Return the last modules of each network.

    Args:
        model: The model.

    Returns:
        One tuple of module names for each network, in the order in which they run. Each module takes only the result
        of the one before it, and the model takes the last result as float32.
    """
    unet, encoder, decoder = "unet.unet", "encoder.encoder", "decoder.decoder"
    quant = ("encoder.quant_conv",) if hasattr(model.encoder, "quant_conv") else ()
    return (
        ("mfm",),
        ("mfm.network",),
        ("mfm.h_space",),
        ("mfm.h_space.mid_block",),
        ("mfm.h_space.middle_block",),
        ("unet",),
        (unet,),
        (f"{unet}.up_blocks.{len(model.unet.unet.up_blocks) - 1}", f"{unet}.conv_norm_out", f"{unet}.conv_out"),
        (f"{encoder}.mid_block", f"{encoder}.conv_norm_out", f"{encoder}.conv_out", *quant),
        ("decoder",),
        (
            f"{decoder}.up_blocks.{len(model.decoder.decoder.up_blocks) - 1}",
            f"{decoder}.conv_norm_out",
            f"{decoder}.conv_out",
        ),
    )


def _returning_float32(model: DOD, fp32_modules: Collection[str]) -> Iterator[str]:
    for tail in network_tails(model):
        for i, name in enumerate(tail):
            if name in fp32_modules and (i + 1 == len(tail) or tail[i + 1] in fp32_modules):
                yield name


class _Casts:
    """Hooks that cast a module's inputs or result between float32 and `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def inputs_up(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[object, dict]:
        return cast_to(args, torch.float32), {name: cast_to(value, torch.float32) for name, value in kwargs.items()}

    def inputs_down(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[object, dict]:
        return cast_to(args, self.dtype), {name: cast_to(value, self.dtype) for name, value in kwargs.items()}

    def result_up(self, module: nn.Module, args: object, output: object) -> object:
        return cast_to(output, torch.float32)

    def result_down(self, module: nn.Module, args: object, output: object) -> object:
        return cast_to(output, self.dtype)

    def skips_down(self, module: nn.Module, args: object, output: tuple[Tensor, list[Tensor]]) -> object:
        return output[0], cast_to(output[1], self.dtype)


class SummedInFloat32(TorchFunctionMode):
    """Context in which 16-bit convolutions and linear layers accumulate in float32 and round once, as on a GPU.

    Results are the same on every CPU. PyTorch's own loops, on CPUs without 16-bit kernels, take a hundred times as long
    for convolutions and five times as long for linear layers.
    """

    SUMS = (torch.conv2d, torch.conv_transpose2d, F.linear)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = args[0].dtype if func in self.SUMS else torch.float32
        if dtype == torch.float32:
            return func(*args, **(kwargs or {}))
        given: Any = cast_to((args, kwargs or {}), torch.float32)
        return func(*given[0], **given[1]).to(dtype)


def cast_to(value: object, dtype: torch.dtype) -> object:
    """Cast every floating-point tensor in nested tuples, lists and dictionaries.

    Args:
        value: A tensor, a container of tensors, or anything else.
        dtype: Target type.

    Returns:
        The same structure with the tensors cast. Other objects are returned unchanged.
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(cast_to(item, dtype) for item in value)
    if type(value) is dict:
        return {key: cast_to(item, dtype) for key, item in value.items()}
    return value
