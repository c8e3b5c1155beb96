"""What can be built for: engines of two libraries for GPUs, OpenVINO, and why a target cannot be built here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dod_runtime.backends.gpu import Gpu, find_gpu
from dod_runtime.errors import BackendError, unknown
from export.errors import TargetError

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""The compute capabilities that TensorRT-RTX 1.7 knows."""


@dataclass(frozen=True)
class Target:
    """A kind of engine.

    module: the library's import name; extra: what installs it; built_on_gpu: whether an engine is built on the very GPU
    that it is for, or anywhere for named compute capabilities.
    """

    name: str
    module: str
    extra: str
    built_on_gpu: bool


TENSORRT_RTX = Target("tensorrt_rtx", module="tensorrt_rtx", extra="tensorrt-rtx", built_on_gpu=False)
TENSORRT = Target("tensorrt", module="tensorrt", extra="tensorrt", built_on_gpu=True)
TARGETS = {target.name: target for target in (TENSORRT_RTX, TENSORRT)}


def unavailable_reason(target: Target) -> str | None:
    """Why this machine cannot build the target's engines, and what to do about it; None where it can."""
    for module, extra in ((target.module, target.extra), ("polygraphy", "export")):
        if find_spec(module) is None:
            return f"{module} is not installed: pip install -e '.[{extra}]'"
    return why_no_gpu() if target.built_on_gpu else None


def openvino_unavailable_reason(precisions: Sequence[str]) -> str | None:
    """Why the target openvino cannot be proven here in a bundle of these precisions; None where it can."""
    if "fp32" not in precisions:
        return "it runs the graphs in fp32: add fp32 to --precision"
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install -e '.[openvino]'"
    return None


def why_no_gpu() -> str | None:
    """Why no NVIDIA GPU can be used here; None where one can."""
    try:
        find_gpu(0)
    except BackendError as error:
        return str(error)
    return None


def gpu_here() -> Gpu | None:
    """The GPU that `tensorrt` engines are built on and bound to, None where there is none."""
    return find_gpu(0) if why_no_gpu() is None else None


def validate_capabilities(values: Sequence[str], *, fp16: bool) -> tuple[str, ...]:
    """The compute capabilities, each once, in ascending order. half: whether a graph for them holds fp16.

    Raises TargetError for none, for an unknown one (naming the nearest), and for 7.5 with fp16.
    """
    if not values:
        raise TargetError("tensorrt_rtx needs compute capabilities by name, for example 8.6 8.9 12.0")
    for value in values:
        if value not in CAPABILITIES:
            raise TargetError(str(unknown("compute capability", value, CAPABILITIES)))
    if fp16 and "7.5" in values:
        raise TargetError("compute capability 7.5 does not build with fp16 normalisation: leave it out, or export fp32")
    return tuple(sorted(set(values), key=CAPABILITIES.index))


def validate_refit(targets: Sequence[str], capabilities: Sequence[str] | None, *, fp16: bool) -> tuple[str, ...]:
    """The compute capabilities of engines whose weights can be exchanged: that of this machine's GPU.

    capabilities: those asked for, None for none by name. Raises TargetError for a target without engines alone, where
    there is no GPU (a builder without one compiles no such engine), and for other capabilities than the GPU's.
    """
    if not any(name in TARGETS for name in targets):
        raise TargetError(f"--refit is for engines: name one of the targets {', '.join(TARGETS)}")
    reason = why_no_gpu()
    if reason:
        raise TargetError(f"--refit needs the GPU that the engines are for while they are built: {reason}")
    here = find_gpu(0).compute_capability
    if capabilities is not None and tuple(capabilities) != (here,):
        asked = " ".join(capabilities)
        raise TargetError(f"--refit builds for the GPU of this machine alone, {here}, not for {asked}")
    return validate_capabilities([here], fp16=fp16) if TENSORRT_RTX.name in targets else ()


def validate_build(
    target: Target, onnx_path: Path, profile: Mapping[str, Sequence[Sequence[int]]], capabilities: Sequence[str]
) -> tuple[str, ...]:
    """Check what can be checked before a build starts; return the capabilities to name.

    Raises TargetError, or FileNotFoundError where there is no graph.
    """
    if not onnx_path.is_file():
        raise FileNotFoundError(2, "no such ONNX graph", str(onnx_path))
    for name, shapes in profile.items():
        lengths = {len(shape) for shape in shapes}
        ascending = all(1 <= a <= b <= c for a, b, c in zip(*shapes, strict=False)) if len(shapes) == 3 else False
        if len(lengths) != 1 or not ascending:
            raise TargetError(f"profile of {name}: {shapes} must be three shapes of one rank, 1 <= min <= opt <= max")
    if target.built_on_gpu:
        if capabilities:
            raise TargetError(f"{target.name} builds for the GPU of this machine: name no compute capabilities")
        return ()
    return validate_capabilities(capabilities, fp16="7.5" in capabilities and is_fp16(onnx_path))


def is_fp16(onnx_path: Path) -> bool:
    """Whether a graph computes in fp16: whether one of its tensors is. External data is not read."""
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.type.tensor_type.elem_type for value in values} | {array.data_type for array in graph.initializer}
    return onnx.TensorProto.FLOAT16 in types
