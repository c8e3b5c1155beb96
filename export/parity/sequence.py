"""The components of a condition path run in order, on any backend. This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.safetensors import read_tensors, write_tensors
from dod_runtime.bundle.schema import GATE
from export.parity.runs import ParityRun, ParitySample, Values

__all__ = [
    "ComponentRunner",
    "EncoderCache",
    "component_inputs",
    "fixed_values",
    "run_in_order",
    "run_pipeline",
    "write_values",
]

Array = TypeVar("Array")


class ComponentRunner(Protocol):
    """Interface that runs components by name: a backend of the runtime, or a `TorchPipeline`."""

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, Any]:
        """Run one component, see `dod_runtime.backends.base.Backend.run`.

        Args:
            component: Name of the component.
            inputs: Its inputs by name.
            condition: Condition of a merged path, None on `auto`.

        Returns:
            Its outputs by name.
        """
        ...


@dataclass(frozen=True)
class EncoderCache:
    """Files with the encoder's outputs for each sample, which are the same on every path of one runner.

    Attributes:
        folder: Folder of the files.
    """

    folder: Path

    def outputs(self, sample: ParitySample, compute: Callable[[], Values]) -> Values:
        """Return the encoder's outputs for a sample.

        Args:
            sample: The sample.
            compute: Function that runs the encoder, called if there is no file yet.

        Returns:
            The outputs, memory-mapped if they come from a file.
        """
        path = self.folder / f"{sample.name}.safetensors"
        if path.exists():
            return read_tensors(path)
        values = compute()
        write_values(path, values)
        return values


def write_values(path: Path, values: Values) -> None:
    """Write arrays to a safetensors file.

    Args:
        path: File to write.
        values: Arrays by name.
    """
    write_tensors(path, {name: (value.dtype, value.shape) for name, value in values.items()}, values.values())


def run_in_order(
    components: Sequence[str],
    values: Mapping[str, Array],
    run: Callable[[str, Mapping[str, Array]], Mapping[str, Array]],
) -> dict[str, Array]:
    """Run the components of a path, each on the values so far.

    Args:
        components: Components in order.
        values: Inputs by name: `image`, `degraded`, `crops`, and what a named condition fixes. The gate does not
            change a `share` that is given.
        run: Function that runs one component on the values so far and returns its outputs.

    Returns:
        All values along the pipeline. `image` is the restored image.
    """
    found, fixed = dict(values), {name: values[name] for name in ("share",) if name in values}
    for component in components:
        found |= run(component, found)
        found |= fixed if component == GATE else {}
    return found


def run_pipeline(
    runner: ComponentRunner, run: ParityRun, bundle: Bundle, cache: EncoderCache, precision: str | None = None
) -> dict[str, np.ndarray]:
    """Run one image through its path.

    Args:
        runner: Runner of the components.
        run: The image and its path.
        bundle: The bundle, whose manifest names the inputs of each component.
        cache: Encoder outputs of this runner.
        precision: Precision of the bundle's graphs; None for float32 inputs, as the reference takes them.

    Returns:
        All values along the pipeline, see `run_in_order`.
    """
    condition = None if run.path == "auto" else run.path
    fixed = {} if condition is None else fixed_values(bundle, condition)

    def run_component(component: str, values: Values) -> Values:
        def compute() -> Values:
            return runner.run(component, component_inputs(component, values, bundle, precision), condition)

        return cache.outputs(run.sample, compute) if component == "encoder" else compute()

    values = {**run.sample.values, "degraded": run.sample.values["image"], **fixed}
    return run_in_order(run.components, values, run_component)


def fixed_values(bundle: Bundle, condition: str) -> dict[str, np.ndarray]:
    """Return the values that a named condition fixes for one image.

    Args:
        bundle: The bundle.
        condition: A condition of the bundle.

    Returns:
        For a model with a gate `condition` [1, C], `share` [1, 1] and `gains` [1, F] of zeros, which the gate replaces
        where it runs; empty for a model without a gate.
    """
    if not bundle.manifest.gated:
        return {}
    values = bundle.condition_tensors(condition)
    gains = np.zeros((1, bundle.manifest.filters), np.float32)
    return {"condition": values["condition"][None], "share": values["share"][None], "gains": gains}


def component_inputs(component: str, values: Values, bundle: Bundle, precision: str | None) -> dict[str, np.ndarray]:
    """Select the inputs of a component and cast them to its types.

    Args:
        component: Name of the component.
        values: Values of the pipeline so far.
        bundle: The bundle, whose manifest describes the inputs.
        precision: Precision of the graphs; None for float32.

    Returns:
        Inputs by name.
    """
    specs = bundle.manifest.components[component].inputs
    dtypes = {spec.name: spec.dtype_in(precision) if precision else "float32" for spec in specs}
    return {name: np.asarray(values[name]).astype(dtype, copy=False) for name, dtype in dtypes.items()}
