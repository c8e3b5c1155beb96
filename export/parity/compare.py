"""Results of parity checks: the measurements, what runtime they come from, and the thresholds that they must reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import ParityError

__all__ = [
    "GATES",
    "MEASURED_WITH",
    "THRESHOLDS",
    "WITHOUT_BUNDLE",
    "ParityResult",
    "check",
    "compare_output",
    "passed_gates",
    "psnr_db",
    "snr_db",
    "unchecked",
]

THRESHOLDS = {
    ("pipeline", "simplified"): ("snr_db", 80.0),
    ("layer", "merged"): ("snr_db", 100.0),
    ("pipeline", "merged"): ("snr_db", 80.0),
    ("pipeline", "onnx fp32"): ("snr_db", 80.0),
    ("pipeline", "torch fp16"): ("psnr_db", 45.0),
    ("pipeline", "onnx fp16"): ("psnr_db", 45.0),
    # Measured against ONNX Runtime: at least 107 dB on mini, 120 dB over 70 random layers of the paper's width. The
    # margin down to 70 is for the paper's depth and for CPUs on which OpenVINO chooses other kernels.
    ("pipeline", "openvino fp32"): ("snr_db", 70.0),
    ("pipeline", "openvino bf16"): ("psnr_db", 45.0),
    # The UNet is checked by itself too: the image of a decoder with a bypass may hide its errors.
    **{(unet, "onnx fp32"): ("snr_db", 80.0) for unet in ("unet_dynamic", "unet_merged")},
    **{(unet, "openvino fp32"): ("snr_db", 70.0) for unet in ("unet_dynamic", "unet_merged")},
}
"""Metric and minimum in dB for a component and a step. Components without a threshold are measured for diagnosis."""

GATES = ("openvino bf16",)
"""Steps whose thresholds decide whether a bundle offers a precision. A result below them does not fail the build."""

WITHOUT_BUNDLE = ("simplified", "merged", "torch fp16")
"""Steps that run in PyTorch and use no file of the bundle."""

MEASURED_WITH = {
    "simplified": "PyTorch fp32: the simplified model compared with the model as it was loaded",
    "merged": "PyTorch fp32: merged weights compared with the low-rank branches, at the prototype",
    "onnx fp32": "ONNX Runtime on CPU",
    "torch fp16": "PyTorch on CPU in fp16 arithmetic (sums in fp32, as on a GPU), with the fp32 modules",
    "onnx fp16": "ONNX Runtime on CPU: checks only graph and fp16 weights; it computes in fp32 and cannot overflow",
    "openvino fp32": "OpenVINO on CPU, the fp32 graphs in fp32",
    "openvino bf16": "OpenVINO on CPU, the fp32 graphs in bf16 arithmetic; decides whether bf16 is offered",
}
"""Runtime and method of each step."""


@dataclass(frozen=True)
class ParityResult:
    """One comparison with PyTorch fp32 on one image.

    Attributes:
        image: Name of the sample.
        path: `auto` or a condition.
        component: Name of the component, or `pipeline` for the image end to end.
        step: Name of the step, a key of `MEASURED_WITH`.
        measured_with: Runtime and method.
        max_abs: Largest absolute difference of the component's main output.
        snr_db: Signal-to-noise ratio of that output in dB.
        psnr_db: PSNR of the image in dB, clipped to its range; None for a single component.
        threshold: Metric and minimum that decide, None if the result is only for diagnosis.
        passed: True if the threshold is reached, or there is none.
    """

    image: str
    path: str
    component: str
    step: str
    measured_with: str
    max_abs: float
    snr_db: float
    psnr_db: float | None
    threshold: str | None
    passed: bool


def compare_output(
    image: str, path: str, component: str, step: str, reference: np.ndarray, value: np.ndarray
) -> ParityResult:
    """Compare an output with the reference's.

    Args:
        image: Name of the sample.
        path: `auto` or a condition.
        component: Name of the component, or `pipeline`.
        step: Name of the step.
        reference: The reference's output.
        value: The output to compare, of the same shape.

    Returns:
        The measurements, and whether they reach the threshold of component and step.
    """
    max_abs = float(np.abs(value.astype(np.float64) - reference).max())
    snr = snr_db(reference, value)
    psnr = psnr_db(reference, value) if component == "pipeline" else None
    metric, minimum = THRESHOLDS.get((component, step), (None, 0.0))
    reached = {"snr_db": snr, "psnr_db": psnr if psnr is not None else snr}.get(metric or "", math.inf)
    threshold = None if metric is None else f"{metric.removesuffix('_db').upper()} >= {minimum:g} dB"
    passed = reached >= minimum
    return ParityResult(image, path, component, step, MEASURED_WITH[step], max_abs, snr, psnr, threshold, passed)


def check(results: Sequence[ParityResult]) -> None:
    """Check that every result reaches its threshold, apart from those of `GATES`.

    Args:
        results: All results of a build.

    Raises:
        ParityError: If a result is below its threshold. The message names the first one.
    """
    failed = [result for result in results if not result.passed and result.step not in GATES]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(results)} results are below their thresholds, first {first.step} of "
            f"{first.component} on {first.image} ({first.path}): SNR {first.snr_db:.1f} dB, PSNR "
            f"{first.psnr_db or 0:.1f} dB, threshold {first.threshold}; no bundle is written"
        )


def unchecked(results: Sequence[ParityResult], paths: Iterable[str]) -> list[str]:
    """Return the condition paths that no runtime ran end to end on any sample.

    Args:
        results: All results of a build.
        paths: The condition paths of the bundle.

    Returns:
        Those of `paths` without such a result.
    """
    checked = {each.path for each in results if each.component == "pipeline" and each.step not in WITHOUT_BUNDLE}
    return [path for path in paths if path not in checked]


def passed_gates(backend: str, results: Sequence[ParityResult]) -> list[str]:
    """Return the reduced precisions that a backend may offer.

    Args:
        backend: Name of the backend.
        results: All results of a build.

    Returns:
        Precisions of `GATES` that were measured and reached their thresholds on every image and path.
    """
    measured = {step: [each for each in results if each.step == step] for step in GATES}
    passed = [step for step, rows in measured.items() if rows and all(each.passed for each in rows)]
    return [precision for name, precision in map(str.split, passed) if name == backend]


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Compute the signal-to-noise ratio, 10 log10(sum ref^2 / sum (value - ref)^2), in float64.

    Args:
        reference: The reference.
        value: An array of the same shape.

    Returns:
        dB. inf if both are equal; -inf if the value has infinities or the reference is 0; NaN if the value has NaNs.
        Neither -inf nor NaN reaches a threshold.

    Example:
        >>> round(snr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])), 3)
        20.0
    """
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    error = np.square(value - reference).sum()
    if error == 0:
        return math.inf
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(reference).sum() / error))


def psnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Compute the PSNR of two images in [-1, 1], with peak 2. Values beyond the range are clipped.

    Args:
        reference: The reference image.
        value: An image of the same shape.

    Returns:
        dB; inf if both are equal.

    Example:
        >>> round(psnr_db(np.zeros(4), np.full(4, 0.02)), 3)
        40.0
    """
    difference = np.clip(value, -1, 1).astype(np.float64) - np.clip(reference, -1, 1)
    error = np.square(difference).mean()
    return math.inf if error == 0 else 10 * math.log10(4 / error)
