"""OpenVINO on the CPU, with the fp32 graphs of the bundle. A condition replaces constants of the merged graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from ...bundle.bundle import Bundle
from ...bundle.schema import REDUCED
from ...errors import BackendError, BundleError, DODRuntimeError
from ..base import BackendInfo, BackendOptions, Shapes, choose_precision, cpu_place
from ..mapped import allocate
from ..sessions import Sessions

__all__ = ["OpenVINO", "is_installed", "machine_reason", "open_backend", "reduced_precisions", "unavailable_reason"]

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names of the precisions."""
CAPABILITIES = {"bf16": "BF16"}
"""CPU capabilities that OpenVINO reports for reduced precisions."""
SIZED = ("mfm", "encoder", "decoder")
"""Components that are compiled for each image size."""
KEPT_SIZES = 2
"""Number of image sizes for which the `SIZED` components stay compiled, such as portrait and landscape. Each compiled
model holds the activations of its size."""


def unavailable_reason(name: str, bundle: Bundle, options: BackendOptions) -> str | None:
    """Return the reason why OpenVINO cannot run a bundle here, None where it can.

    Args:
        name: `openvino`.
        bundle: the bundle to run. A reduced precision must have passed its parity check.
        options: options of the caller.
    """
    target = bundle.manifest.targets.get(name)
    if target is None:
        return f"this bundle was built without the target {name}"
    precision = choose_precision(options.precision, target.precisions, "fp32")
    if precision is None:
        return _failed_parity(bundle, options.precision) or (
            f"this bundle has {' and '.join(target.precisions)} for it, not {options.precision}"
        )
    reason = machine_reason(name, options)
    if reason is None and precision in REDUCED and precision not in reduced_precisions():
        reason = f"this CPU does not compute in {precision}"
    return reason


def machine_reason(name: str, options: BackendOptions) -> str | None:
    """Return the reason why OpenVINO cannot run any bundle here, None if it can.

    Args:
        name: `openvino`.
        options: options of the caller.
    """
    try:
        import_module("openvino")
    except (ImportError, OSError) as error:
        return f"the library openvino cannot be imported ({error}); install it with: pip install openvino"
    return None


def is_installed(name: str) -> bool:
    """Return True where OpenVINO is installed and can be imported.

    Args:
        name: `openvino`.
    """
    return machine_reason(name, BackendOptions()) is None


def _failed_parity(bundle: Bundle, precision: str) -> str | None:
    """Return the parity result for which the export left a reduced precision out, None where it measured none."""
    step = f"openvino {precision}"
    rows = [row for row in bundle.manifest.parity if row.get("step") == step and row.get("component") == "pipeline"]
    missed = [row for row in rows if not row.get("passed")]
    if not missed:
        return None
    worst = min(missed, key=lambda row: row["psnr_db"])
    where = f"{worst['image']} ({worst['path']})"
    return (
        f"{precision} did not pass the parity check of this bundle: PSNR {worst['psnr_db']:.1f} dB on {where}, "
        f"below its threshold {worst['threshold']}"
    )


def reduced_precisions() -> tuple[str, ...]:
    """Return the precisions of `REDUCED` that OpenVINO computes in natively on this CPU.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision in REDUCED if CAPABILITIES.get(precision) in able)


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> OpenVINO:
    """Open the backend.

    Args:
        name: `openvino`.
        bundle: the bundle to run.
        options: options of the caller.

    Raises:
        BackendError: it cannot run here.
    """
    return OpenVINO(name, bundle, options)


class OpenVINO(Sessions):
    """One compiled model for each component and condition, created at its first use. Threads may share all of them.

    `SIZED` components are compiled for each image size: OpenVINO then plans their memory, takes half as much and runs
    them 10 % faster. A UNet would gain less than its compilation costs.

    Args:
        name: `openvino`.
        bundle: the bundle to run.
        options: options of the caller.

    Raises:
        BackendError: it cannot run here.
    """

    def __init__(self, name: str, bundle: Bundle, options: BackendOptions) -> None:
        reason = unavailable_reason(name, bundle, options)
        if reason:
            raise BackendError(reason)
        import openvino

        from . import branches, winograd

        target = bundle.manifest.targets[name]
        precision = choose_precision(options.precision, target.precisions, "fp32") or ""
        super().__init__(bundle, bundle.manifest.precisions[REDUCED.get(precision, precision)])
        self._kept |= {component: min(self._kept[component], KEPT_SIZES) for component in SIZED}
        self._ov, self._core = openvino, openvino.Core()
        self._branches, self._winograd = branches, winograd
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # The cores also belong to other threads of the application.
            "ENABLE_CPU_PINNING": False,
        }
        if options.num_threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = options.num_threads
        self._version = openvino.__version__.partition("-")[0]
        self.info = BackendInfo(name, self._version, cpu_place(options.num_threads), precision)

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, np.ndarray]:
        """Run one component; see `Backend.run`. Each call has its own inference request, so threads share the models.

        Args:
            component: name of the component.
            inputs: arrays by name.
            condition: condition that is merged into the UNet; only `unet_merged` needs it.

        Returns:
            The outputs by name, as arrays.
        """
        io = self._bundle.manifest.components[component]
        given = tuple(np.shape(inputs[spec.name]) for spec in io.inputs if spec.name in inputs)
        model = self._session(component, condition, self._fixed(component, given))
        with self._saving_memory(self._bundle.folder):
            try:
                given = {**inputs, **self._winograd.extra_inputs(model)}
                found = model.create_infer_request().infer(given, share_inputs=True)
                # By name: a port that OpenVINO merged with another one has several names, in no order.
                outputs = {spec.name: found[spec.name] for spec in io.outputs}
                # The decoder has the most memory, and would spend 10 % of its time on allocating it again.
                if self._large and component != "decoder":
                    with suppress(RuntimeError):  # another thread is running the model, and releases it afterwards
                        model.release_memory()
            except Exception as error:  # the only common base of OpenVINO's exceptions
                raise BackendError(f"OpenVINO failed in {component}: {_one_line(error)}") from error
        return outputs

    def to_numpy(self, value: Any) -> np.ndarray:
        """Return the value itself, which is an array; see `Backend.to_numpy`.

        Args:
            value: output of `run`.
        """
        return value

    def _fixed(self, component: str, shapes: Shapes) -> Shapes:
        return shapes if component in SIZED else ()

    def _open(self, component: str, values: dict[str, np.ndarray], shapes: Shapes) -> Any:
        path = self._bundle.path(self._files.onnx[component])
        try:
            model = self._core.read_model(path)
            self._replace(model, values)
            self._fix(model, component, shapes)
            self._rewrite(model, component, bool(shapes))
            return self._core.compile_model(model, "CPU", self._settings)
        except DODRuntimeError:
            raise
        except Exception as error:  # as in `run`
            raise BundleError(f"OpenVINO {self._version} cannot load {path}: {_one_line(error)}") from error

    def _fix(self, model: Any, component: str, shapes: Shapes) -> None:
        names = [spec.name for spec in self._bundle.manifest.components[component].inputs]
        try:
            if shapes:
                model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=True)})
        except Exception as error:  # as in `run`
            raise BackendError(f"OpenVINO failed in {component}: {_one_line(error)}") from error

    def _rewrite(self, model: Any, component: str, sized: bool) -> None:
        """Join low-rank branches with their layers and, in fp32 only, rewrite convolutions with fewer products.

        In fp32 the rounding errors of the rewritten convolutions are negligible.
        """
        places = partial(allocate, on_disk=self._large)
        self._branches.join(model, places)
        if self.info.precision == "fp32":
            multiple = self._bundle.manifest.size_multiple
            io = self._bundle.manifest.components[component]
            smallest = {spec.name: spec.sized(1, multiple, multiple) for spec in io.inputs}
            self._winograd.rewrite(model, None if sized else places, smallest)

    def _replace(self, model: Any, values: dict[str, np.ndarray]) -> None:
        """Replace constants by the `values` of their names.

        OpenVINO uses the arrays of `allocate` in place, because they are aligned; it would copy others and keep both.
        It also keeps the original of what it packs, so large values are on disk. The frontend names a constant after
        its initializer, and folds nothing before `compile_model`: no transposed or packed old value can survive.
        """
        constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
        if missing := values.keys() - constants.keys():
            raise BundleError(f"cannot merge: the graph unet_merged holds no constant {min(missing)!r}")
        for name, value in values.items():
            merged = self._ov.op.Constant(value, shared_memory=True)
            merged.set_friendly_name(name)
            for user in constants[name].output(0).get_target_inputs():
                user.replace_source_output(merged.output(0))


def _one_line(error: Exception) -> str:
    """Return the first line of an error message after the leading locations in OpenVINO's sources."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    messages = [line for line in lines if not re.search(r":\d+:$", line)]
    return (messages or lines or [type(error).__name__])[0]
