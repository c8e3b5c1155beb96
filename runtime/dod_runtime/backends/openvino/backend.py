"""OpenVINO on the CPU, from the bundle's fp32 graphs. A condition replaces constants of the one merged graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from ...bundle.bundle import Bundle
from ...bundle.schema import REDUCED
from ...errors import BackendError, BundleError, DODRuntimeError
from ..base import Options, Shapes, choose_precision
from ..mapped import allocate
from ..sessions import Sessions

__all__ = ["OpenVINO", "open_backend", "reduced_precisions", "unavailable_reason"]

HINTS = {"fp32": "f32", "bf16": "bf16"}
CAPABILITIES = {"bf16": "BF16"}
SIZED = ("mfm", "encoder", "decoder")
SIZES = 2
"""Of so many sizes what is `SIZED` stays compiled: each holds the activations of its size, of an image's upright and
its lying format two."""


def unavailable_reason(name: str, bundle: Bundle, options: Options) -> str | None:
    """Why OpenVINO cannot run `bundle` here; None where it can. A reduced precision needs the gate of the export."""
    target = bundle.manifest.targets.get(name)
    if target is None:
        return f"this bundle was built without the target {name}"
    precision = choose_precision(options.precision, target.precisions, "fp32")
    if precision is None:
        return _gate(bundle, options.precision) or (
            f"this bundle has {' and '.join(target.precisions)} for it, not {options.precision}"
        )
    try:
        import openvino  # noqa: F401
    except (ImportError, OSError) as error:
        return f"the library openvino cannot be imported ({error}); install it with: pip install openvino"
    if precision in REDUCED and precision not in reduced_precisions():
        return f"this CPU does not compute in {precision}"
    return None


def _gate(bundle: Bundle, precision: str) -> str | None:
    """What the export measured of a reduced precision that it then left out; None where it measured nothing."""
    step = f"openvino {precision}"
    rows = [row for row in bundle.manifest.parity if row.get("step") == step and row.get("component") == "pipeline"]
    missed = [row for row in rows if not row.get("passed")]
    if not missed:
        return None
    worst = min(missed, key=lambda row: row["psnr_db"])
    where = f"{worst['image']} ({worst['path']})"
    return (
        f"{precision} did not pass the parity gate of this bundle: PSNR {worst['psnr_db']:.1f} dB on {where}, "
        f"and it needs {worst['threshold']}"
    )


def reduced_precisions() -> tuple[str, ...]:
    """Those of `REDUCED` that OpenVINO computes in natively on this CPU. Raises ImportError without the library."""
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision in REDUCED if CAPABILITIES.get(precision) in able)


def open_backend(name: str, bundle: Bundle, options: Options) -> OpenVINO:
    """Opens the backend. Raises BackendError where it cannot run here."""
    return OpenVINO(name, bundle, options)


class OpenVINO(Sessions):
    """A compiled model for each component and condition, made when it is first needed. Threads may share all of it.

    Those of `SIZED` are compiled for each size of image anew: OpenVINO then plans their memory, half of what it takes
    otherwise, and runs them a tenth faster. What a UNet gains by it is less than what its compilation takes.
    """

    def __init__(self, name: str, bundle: Bundle, options: Options) -> None:
        reason = unavailable_reason(name, bundle, options)
        if reason:
            raise BackendError(reason)
        import openvino

        from . import branches, winograd

        target = bundle.manifest.targets[name]
        self.name, self.precision = name, choose_precision(options.precision, target.precisions, "fp32") or ""
        super().__init__(bundle, bundle.manifest.precisions[REDUCED.get(self.precision, self.precision)])
        self._kept |= {component: min(self._kept[component], SIZES) for component in SIZED}
        self._ov, self._core = openvino, openvino.Core()
        self._branches, self._winograd = branches, winograd
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            # The cores belong to the application that this is embedded in, and to its other threads.
            "ENABLE_CPU_PINNING": False,
        }
        if options.num_threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = options.num_threads
        place = "the CPU" if options.num_threads is None else f"the CPU, {options.num_threads} threads"
        self.description = f"OpenVINO {openvino.__version__.partition('-')[0]} on {place}, {self.precision}"

    def run(self, component: str, inputs: Mapping[str, Any], condition: str | None = None) -> dict[str, np.ndarray]:
        """See `Backend.run`. Each call has an inference request of its own, so that threads share compiled models."""
        io = self._bundle.manifest.components[component]
        given = tuple(np.shape(inputs[spec.name]) for spec in io.inputs if spec.name in inputs)
        model = self._session(component, condition, self._fixed(component, given))
        with self._sparing(self._bundle.folder):
            try:
                given = {**inputs, **self._winograd.extra_inputs(model)}
                found = model.create_infer_request().infer(given, share_inputs=True)
                # By name: a port that OpenVINO has merged with another bears several, in no order.
                outputs = {spec.name: found[spec.name] for spec in io.outputs}
                if self._large and component != "decoder":  # its own, the most, costs a tenth of its time to get anew
                    with suppress(RuntimeError):  # another thread runs it just now, and releases it after that
                        model.release_memory()
            except Exception as error:  # OpenVINO's exceptions have no common base but this one
                raise BackendError(f"OpenVINO failed in {component}: {_one_line(error)}") from error
        return outputs

    def to_numpy(self, value: Any) -> np.ndarray:
        """See `Backend.to_numpy`."""
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
            version = self._ov.__version__.partition("-")[0]
            raise BundleError(f"OpenVINO {version} cannot load {path}: {_one_line(error)}") from error

    def _fix(self, model: Any, component: str, shapes: Shapes) -> None:
        names = [spec.name for spec in self._bundle.manifest.components[component].inputs]
        try:
            if shapes:
                model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=False)})
        except Exception as error:  # as in `run`
            raise BackendError(f"OpenVINO failed in {component}: {_one_line(error)}") from error

    def _rewrite(self, model: Any, component: str, sized: bool) -> None:
        """For speed: branches joined with their layers and, in float32 alone, convolutions with fewer products, where
        what they round is of no account."""
        places = partial(allocate, on_disk=self._large)
        self._branches.join(model, places)
        if self.precision == "fp32":
            multiple = self._bundle.manifest.size_multiple
            io = self._bundle.manifest.components[component]
            smallest = {spec.name: spec.sized(1, multiple, multiple) for spec in io.inputs}
            self._winograd.rewrite(model, None if sized else places, smallest)

    def _replace(self, model: Any, values: dict[str, np.ndarray]) -> None:
        """Puts `values` in the place of the constants of their names.

        They lie at addresses that OpenVINO takes as they are: numpy's it copies, and keeps both. It also keeps what
        it has packed: hence large ones lie on disk.

        The frontend names a constant after its initializer and folds nothing before `compile_model`, which is when
        what was derived from the old value (a transpose, a packed kernel) would be.
        """
        constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
        if strangers := values.keys() - constants.keys():
            raise BundleError(f"cannot merge: the graph unet_merged holds no constant {min(strangers)!r}")
        for name, value in values.items():
            merged = self._ov.op.Constant(value, shared_memory=True)
            merged.set_friendly_name(name)
            for user in constants[name].output(0).get_target_inputs():
                user.replace_source_output(merged.output(0))


def _one_line(error: Exception) -> str:
    """What an exception says, without the places in OpenVINO's sources that its message begins with."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    told = [line for line in lines if not re.search(r":\d+:$", line)]
    return (told or lines or [type(error).__name__])[0]
