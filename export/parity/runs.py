"""Plan of a parity check: the sample images, the steps that are compared, and the runs of each condition path.

This module does not import torch, so that the process of `export.parity.bundle_process` stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dod.data.images import centre_crop
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import REDUCED
from dod_runtime.condition_path import ConditionPath
from dod_runtime.image.geometry import crops, pad, padded_size
from dod_runtime.image.read import read
from dod_runtime.pipeline import components_of

__all__ = [
    "ParityRun",
    "ParitySample",
    "ParityStep",
    "Values",
    "condition_of",
    "load_sample",
    "parity_steps",
    "paths_of",
    "sample_pixels",
]

Values = Mapping[str, np.ndarray]
"""Inputs and outputs of components, by name."""


@dataclass(frozen=True)
class ParitySample:
    """A photograph that is ready for the pipeline.

    Attributes:
        name: Name of its file.
        condition: Condition that the name begins with, "" if there is none.
        values: `image` [1, 3, H, W] and `crops` [1, K, 3, R, R], float32 in [-1, 1].
    """

    name: str
    condition: str
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class ParityStep:
    """One comparison with the reference: the graphs that run, and the backend that runs them.

    Attributes:
        name: Name of the step, for example `onnx fp32`.
        graphs: Precision of the graphs.
        backend: Backend of the runtime, None for PyTorch itself.
        precision: Precision that the backend computes in.
    """

    name: str
    graphs: str
    backend: str | None
    precision: str


@dataclass(frozen=True)
class ParityRun:
    """One image on one condition path.

    Attributes:
        path: `auto` or a condition.
        components: Components of the path, in order.
        sample: The image.
        isolated: Components that are also compared by themselves, on the reference's own inputs.
    """

    path: str
    components: Sequence[str]
    sample: ParitySample
    isolated: Sequence[str] = ()


def sample_pixels(path: Path, largest: int) -> np.ndarray:
    """Read the middle of a photograph.

    Args:
        path: Image file.
        largest: Maximum of either side in pixels.

    Returns:
        float32 [H, W, 3] in [-1, 1], upright.
    """
    return centre_crop(read(path).pixels, largest)


def load_sample(path: Path, bundle: Bundle, conditions: Sequence[str]) -> ParitySample:
    """Load a photograph and prepare it as the runtime does.

    Args:
        path: Image file.
        bundle: The bundle, whose sizes and crops are used.
        conditions: Conditions that the file's name may begin with.

    Returns:
        The sample.
    """
    manifest = bundle.manifest
    pixels = sample_pixels(path, manifest.profile.size[2])
    sizes = manifest.size_multiple, manifest.profile.size[0], manifest.profile.size[2]
    image = pad(pixels, *(padded_size(side, *sizes) for side in pixels.shape[:2])).transpose(2, 0, 1)[None]
    taken = crops(pixels, manifest.crops.count, manifest.crops.size)[None]
    values = {"image": np.ascontiguousarray(image), "crops": taken}
    return ParitySample(path.name, condition_of(path.name, conditions), values)


def condition_of(name: str, conditions: Sequence[str]) -> str:
    """Return the longest condition that a file's name begins with.

    Args:
        name: Name of the file.
        conditions: Known conditions.

    Returns:
        The condition, "" if there is none.

    Example:
        >>> condition_of("rain-haze_1.png", ("rain", "rain-haze"))
        'rain-haze'
    """
    return max((each for each in conditions if name.startswith(each)), key=len, default="")


def parity_steps(bundle: Bundle) -> list[ParityStep]:
    """Return the steps of a parity check in order.

    PyTorch's fp16 comes first: after it the values of the model are not needed any more.

    Args:
        bundle: The bundle.

    Returns:
        Its steps, without the comparison of merged weights that needs no graph.
    """
    manifest = bundle.manifest
    steps = [ParityStep("torch fp16", "fp16", None, "fp16")] if "fp16" in manifest.precisions else []
    steps += [ParityStep(f"onnx {each}", each, "onnxruntime_cpu", each) for each in manifest.precisions]
    openvino = manifest.targets.get("openvino")
    for precision in openvino.precisions if openvino else ():
        steps.append(ParityStep(f"openvino {precision}", REDUCED.get(precision, precision), "openvino", precision))
    return steps


def paths_of(bundle: Bundle, samples: Sequence[ParitySample]) -> dict[str, list[ParityRun]]:
    """Plan the runs of each condition path.

    Every sample runs through `auto`, and the samples of a condition through its merged path. A condition without a
    sample takes the first one: parity holds on any image, and the encoder's outputs of that sample exist already. The
    first run of a path also compares components by themselves.

    Args:
        bundle: The bundle.
        samples: The samples, at least one.

    Returns:
        Runs by condition path.
    """
    dynamic = components_of(bundle, ConditionPath())
    paths = {"auto": [ParityRun("auto", dynamic, each, dynamic if each is samples[0] else ()) for each in samples]}
    for name in sorted(bundle.manifest.conditions):
        taken = [each for each in samples if each.condition == name] or samples[:1]
        isolated, merged = ("unet_merged",), components_of(bundle, ConditionPath(name))
        paths[name] = [ParityRun(name, merged, each, isolated if each is taken[0] else ()) for each in taken]
    return paths
