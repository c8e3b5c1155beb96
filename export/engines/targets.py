"""Build targets: the two TensorRT libraries and OpenVINO, with checks that a target can be built on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dod_runtime.backends.gpu import Gpu, find_gpu
from dod_runtime.errors import BackendError, unknown
from export.errors import TargetError

__all__ = [
    "CAPABILITIES",
    "TARGETS",
    "TENSORRT",
    "TENSORRT_RTX",
    "EngineTarget",
    "gpu_here",
    "gpu_unavailable_reason",
    "is_fp16",
    "openvino_unavailable_reason",
    "unavailable_reason",
    "validate_build",
    "validate_capabilities",
    "validate_refit",
]

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 supports."""


@dataclass(frozen=True)
class EngineTarget:
    """A library that engines are built for.

    Attributes:
        name: Name of the target.
        module: Import name of the library.
        extra: Optional dependency of this project that installs it.
        built_on_gpu: True if an engine is built on the GPU that runs it; False if it is built on any machine for named
            compute capabilities.
    """

    name: str
    module: str
    extra: str
    built_on_gpu: bool


TENSORRT_RTX = EngineTarget("tensorrt_rtx", module="tensorrt_rtx", extra="tensorrt-rtx", built_on_gpu=False)
TENSORRT = EngineTarget("tensorrt", module="tensorrt", extra="tensorrt", built_on_gpu=True)
TARGETS = {target.name: target for target in (TENSORRT_RTX, TENSORRT)}
"""Engine targets by name."""


def unavailable_reason(target: EngineTarget) -> str | None:
    """Return the reason why this machine cannot build engines for a target.

    Args:
        target: The target.

    Returns:
        One line with the remedy, None if engines can be built.
    """
    for module, extra in ((target.module, target.extra), ("polygraphy", "export")):
        if find_spec(module) is None:
            return f"{module} is not installed: pip install -e '.[{extra}]'"
    return gpu_unavailable_reason() if target.built_on_gpu else None


def openvino_unavailable_reason(precisions: Sequence[str]) -> str | None:
    """Return the reason why the target `openvino` cannot be built and measured on this machine.

    Args:
        precisions: Precisions of the bundle.

    Returns:
        One line with the remedy, None if it can be built.
    """
    if "fp32" not in precisions:
        return "it runs the graphs in fp32: add fp32 to --precision"
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install -e '.[openvino]'"
    return None


def gpu_unavailable_reason() -> str | None:
    """Return the reason why no NVIDIA GPU can be used on this machine, None if one can."""
    try:
        find_gpu(0)
    except BackendError as error:
        return str(error)
    return None


def gpu_here() -> Gpu | None:
    """Return the GPU that `tensorrt` engines are built on and bound to, None if there is none."""
    return find_gpu(0) if gpu_unavailable_reason() is None else None


def validate_capabilities(values: Sequence[str], *, fp16: bool) -> tuple[str, ...]:
    """Check compute capabilities.

    Args:
        values: Compute capabilities, for example `("8.6", "8.9")`.
        fp16: True if the graph holds fp16.

    Returns:
        Each capability once, in ascending order.

    Raises:
        TargetError: If there is none, if one is unknown, or if 7.5 is combined with fp16.
    """
    if not values:
        raise TargetError("tensorrt_rtx needs compute capabilities by name, for example 8.6 8.9 12.0")
    for value in values:
        if value not in CAPABILITIES:
            raise TargetError(str(unknown("compute capability", value, CAPABILITIES)))
    if fp16 and "7.5" in values:
        raise TargetError("compute capability 7.5 does not support fp16 normalization: leave it out, or export fp32")
    return tuple(sorted(set(values), key=CAPABILITIES.index))


def validate_refit(targets: Sequence[str], capabilities: Sequence[str] | None, *, fp16: bool) -> tuple[str, ...]:
    """Check that refittable engines can be built, and return their compute capabilities.

    Args:
        targets: Names of all targets of the build.
        capabilities: Compute capabilities that were asked for, None if none were named.
        fp16: True if the graphs hold fp16.

    Returns:
        The capability of this machine's GPU, empty without the target `tensorrt_rtx`.

    Raises:
        TargetError: If no target has engines, if there is no GPU, which compiles refittable engines, or if other
            capabilities than the GPU's were asked for.
    """
    if not any(name in TARGETS for name in targets):
        raise TargetError(f"--refit is for engines: name one of the targets {', '.join(TARGETS)}")
    reason = gpu_unavailable_reason()
    if reason:
        raise TargetError(f"--refit needs the GPU that the engines are for while they are built: {reason}")
    here = find_gpu(0).compute_capability
    if capabilities is not None and tuple(capabilities) != (here,):
        asked = " ".join(capabilities)
        raise TargetError(f"--refit builds only for the GPU of this machine, {here}, not for {asked}")
    return validate_capabilities([here], fp16=fp16) if TENSORRT_RTX.name in targets else ()


def validate_build(
    target: EngineTarget, onnx_path: Path, profile: Mapping[str, Sequence[Sequence[int]]], capabilities: Sequence[str]
) -> tuple[str, ...]:
    """Check the arguments of a build before it starts.

    Args:
        target: The target.
        onnx_path: The graph.
        profile: Minimum, optimal and maximum shape of each input.
        capabilities: Compute capabilities to build for; none for a target that is built on its GPU.

    Returns:
        The capabilities to pass to the builder.

    Raises:
        TargetError: If the profile or the capabilities are invalid.
        FileNotFoundError: If there is no graph.
    """
    if not onnx_path.is_file():
        raise FileNotFoundError(2, "no such ONNX graph", str(onnx_path))
    for name, shapes in profile.items():
        lengths = {len(shape) for shape in shapes}
        ascending = all(1 <= a <= b <= c for a, b, c in zip(*shapes, strict=False)) if len(shapes) == 3 else False
        if len(lengths) != 1 or not ascending:
            raise TargetError(f"profile of {name}: {shapes} must be 3 shapes of one rank with 1 <= min <= opt <= max")
    if target.built_on_gpu:
        if capabilities:
            raise TargetError(f"{target.name} builds for the GPU of this machine: name no compute capabilities")
        return ()
    return validate_capabilities(capabilities, fp16="7.5" in capabilities and is_fp16(onnx_path))


def is_fp16(onnx_path: Path) -> bool:
    """Return True if a graph has an fp16 tensor. External data are not read.

    Args:
        onnx_path: The graph.

    Returns:
        True if an input, output, intermediate value or initializer is fp16.
    """
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.type.tensor_type.elem_type for value in values} | {array.data_type for array in graph.initializer}
    return onnx.TensorProto.FLOAT16 in types
