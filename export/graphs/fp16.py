"""Half precision with float32 islands, made in the module itself before its one half trace."""

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

COMPONENTS = ("mfm", "encoder", "unet", "decoder")
GIVEN_FLOAT32 = ("mfm.h_space", "mfm.network", "encoder.encoder.conv_in")
"""What the model hands float32 to, whatever its own dtype is, where no part of it is an island."""
FLOAT32 = ("gate", "postprocess")
"""What stays in float32 whatever the precision: an image's decisions, and the blend that they control."""
UNCALLED = ("encoder.encoder", "decoder.decoder")
"""Their parts are called one by one: as islands they would never hear of a call."""


def default_fp32_modules(model: DOD) -> tuple[str, ...]:
    """M and the end of each residual stream (an error in eps grows 14.6 times in the closed form): a set that asks for
    no measurement. A build measures its own, see `export.precision.search`."""
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
    """GraphError on a name that the model does not have, or on a mere container, which is never called itself."""
    for name in fp32_modules:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            known = ", ".join(default_fp32_modules(model))
            raise GraphError(f"no module {name!r} to keep in float32; such are {known}") from None
        if not name or name in UNCALLED or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            parts = [f"{name}.{part}".removeprefix(".") for part, _ in module.named_children()]
            raise GraphError(f"{name or 'the model'} is never called as one: keep its parts in float32, {parts}")


def fp16_copy(model: DOD, fp32_modules: Sequence[str] | None = None, dtype: torch.dtype = torch.float16) -> DOD:
    """A copy of the model in `dtype` whose named modules (None: the default ones) stay in float32.

    An island casts its inputs up. One that ends a network, or is followed by another island at the end of it, hands
    float32 on, so that nothing is rounded in between; any other casts its result back.
    GraphError as `check_fp32_modules`.
    """
    fp32_modules = default_fp32_modules(model) if fp32_modules is None else fp32_modules
    check_fp32_modules(model, fp32_modules)
    outermost = tuple(dict.fromkeys(name for name in fp32_modules if not within(name, set(fp32_modules) - {name})))
    kept = (*outermost, *FLOAT32)
    fp16 = converted_copy(model, lambda name, value: value if within(name, kept) else value.to(dtype))
    casts = _Casts(dtype)
    for name in GIVEN_FLOAT32:
        if not within(name, outermost):
            fp16.get_submodule(name).register_forward_pre_hook(casts.inputs_down, with_kwargs=True)
    if not within("mfm.network", outermost):
        fp16.mfm.network.register_forward_hook(casts.result_up)
    handing_on = set(_handing_on(model, outermost))
    for name in outermost:
        module = fp16.get_submodule(name)
        module.register_forward_pre_hook(casts.inputs_up, with_kwargs=True)
        if name == "encoder":
            module.register_forward_hook(casts.skips_down)
        elif name not in handing_on:
            module.register_forward_hook(casts.result_down)
    return fp16


def converted_copy(model: DOD, convert: Callable[[str, Tensor], Tensor]) -> DOD:
    """A copy of the model in which each floating-point parameter and buffer is what `convert(name, value)` makes of it.

    They are converted one by one on the way, so that there is never a second copy of all of them in float32.
    """
    memo: dict[int, object] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        converted = convert(name, value.detach()) if value.is_floating_point() else value
        converted = converted.clone() if converted.data_ptr() == value.data_ptr() else converted
        parameter = isinstance(value, nn.Parameter)
        memo[id(value)] = nn.Parameter(converted, value.requires_grad) if parameter else converted
    return copy.deepcopy(model, memo)


def within(name: str, modules: Collection[str]) -> bool:
    """Whether a module or tensor is one of `modules` or lies in one."""
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in modules for i in range(len(parts)))


def ends(model: DOD) -> tuple[tuple[str, ...], ...]:
    """The last modules of each network in order: each takes nothing but the result of the one before, and what the
    last one gives is taken as float32."""
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


def _handing_on(model: DOD, fp32_modules: Collection[str]) -> Iterator[str]:
    for chain in ends(model):
        for i, name in enumerate(chain):
            if name in fp32_modules and (i + 1 == len(chain) or chain[i + 1] in fp32_modules):
                yield name


class _Casts:
    """The hooks that cast what goes into a module or comes out of it, between float32 and `dtype`."""

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
    """Inside the block convolutions and linear layers of float16 or bfloat16 tensors take their products and sums in
    float32 and round the result once, to their type: a GPU's arithmetic, and the same figures on every CPU. PyTorch's
    own loops for CPUs without such kernels take a hundred times as long for the ones, five times for the others."""

    SUMS = (torch.conv2d, torch.conv_transpose2d, F.linear)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = args[0].dtype if func in self.SUMS else torch.float32
        if dtype == torch.float32:
            return func(*args, **(kwargs or {}))
        given: Any = cast_to((args, kwargs or {}), torch.float32)
        return func(*given[0], **given[1]).to(dtype)


def cast_to(value: object, dtype: torch.dtype) -> object:
    """Every floating-point tensor in nested tuples, lists and dictionaries in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(cast_to(item, dtype) for item in value)
    if type(value) is dict:
        return {key: cast_to(item, dtype) for key, item in value.items()}
    return value
