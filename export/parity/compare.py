"""The figures of parity: what is compared, by which witness, and what it must reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import ParityError

THRESHOLDS = {
    ("pipeline", "simplified"): ("snr_db", 80.0),
    ("layer", "merged"): ("snr_db", 100.0),
    ("pipeline", "merged"): ("snr_db", 80.0),
    ("pipeline", "onnx fp32"): ("snr_db", 80.0),
    ("pipeline", "torch fp16"): ("psnr_db", 45.0),
    ("pipeline", "onnx fp16"): ("psnr_db", 45.0),
    # Measured against ONNX Runtime: 107 dB at worst on mini, 120 dB over 70 random layers of the paper's width. What is
    # left down to 70 is room for the paper's depth and for CPUs on which OpenVINO takes other kernels.
    ("pipeline", "openvino fp32"): ("snr_db", 70.0),
    ("pipeline", "openvino bf16"): ("psnr_db", 45.0),
    # By itself too: a decoder with a bypass may show nothing of it in the image.
    **{(unet, "onnx fp32"): ("snr_db", 80.0) for unet in ("unet_dynamic", "unet_merged")},
    **{(unet, "openvino fp32"): ("snr_db", 70.0) for unet in ("unet_dynamic", "unet_merged")},
}
"""What the figure of a component and a step must reach, in dB. A component without a budget is shown for diagnosis."""

GATES = ("openvino bf16",)
"""Steps whose budget decides whether the bundle offers a precision. Missing it fails no build."""

WITHOUT_BUNDLE = ("simplified", "merged", "torch fp16")
"""Steps that PyTorch computes alone: they run no file of the bundle."""

MEASURED_WITH = {
    "simplified": "PyTorch fp32: the model with its exact simplifications against the model as it was loaded",
    "merged": "PyTorch fp32: merged weights against the low-rank branches, at the prototype",
    "onnx fp32": "ONNX Runtime on CPU",
    "torch fp16": "PyTorch on CPU in true half arithmetic (sums in fp32, as on a GPU), with the fp32 islands",
    "onnx fp16": "ONNX Runtime on CPU: graph and half weights only; it computes in fp32 and cannot show an overflow",
    "openvino fp32": "OpenVINO on CPU, the fp32 graphs in float32",
    "openvino bf16": "OpenVINO on CPU, the fp32 graphs in true bfloat16 arithmetic; decides whether bf16 is offered",
}


@dataclass(frozen=True)
class Figure:
    """One comparison with PyTorch fp32 on one image. path: `auto` or a condition. component: `chain` for all of it.

    max_abs and snr_db are of the component's main output; psnr_db of the image (clipped to its range), of the chain
    alone. budget names the figure that decides and what it must reach, None where nothing depends on it.
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


def figure(image: str, path: str, component: str, step: str, reference: np.ndarray, value: np.ndarray) -> Figure:
    """Compare a value with its reference and hold it against its budget."""
    max_abs = float(np.abs(value.astype(np.float64) - reference).max())
    snr = snr_db(reference, value)
    psnr = psnr_db(reference, value) if component == "pipeline" else None
    kind, least = THRESHOLDS.get((component, step), (None, 0.0))
    reached = {"snr_db": snr, "psnr_db": psnr if psnr is not None else snr}.get(kind or "", math.inf)
    threshold = None if kind is None else f"{kind.removesuffix('_db').upper()} >= {least:g} dB"
    return Figure(image, path, component, step, MEASURED_WITH[step], max_abs, snr, psnr, threshold, reached >= least)


def check(figures: Sequence[Figure]) -> None:
    """Raises ParityError where a figure missed its budget, unless it is one of `GATES`."""
    failed = [figure for figure in figures if not figure.passed and figure.step not in GATES]
    if failed:
        worst = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(figures)} figures miss their budget, first {worst.step} of {worst.component} "
            f"on {worst.image} ({worst.path}): SNR {worst.snr_db:.1f} dB, PSNR {worst.psnr_db or 0:.1f} dB, "
            f"budget {worst.threshold}; no bundle is written"
        )


def unchecked(figures: Sequence[Figure], paths: Iterable[str]) -> list[str]:
    """Return those of the condition paths that no runtime ran from end to end on any sample."""
    checked = {each.path for each in figures if each.component == "pipeline" and each.step not in WITHOUT_BUNDLE}
    return [path for path in paths if path not in checked]


def passed_gates(backend: str, figures: Sequence[Figure]) -> list[str]:
    """The reduced precisions of a backend that were measured and met their budget on every image and path."""
    measured = {step: [each for each in figures if each.step == step] for step in GATES}
    passed = [step for step, rows in measured.items() if rows and all(each.passed for each in rows)]
    return [precision for name, precision in map(str.split, passed) if name == backend]


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal-to-noise ratio in dB, in float64: 10 log10(sum ref^2 / sum (value - ref)^2). Infinite where equal.

    -inf where the value has infinities or nothing is to be reached, NaN where it has NaNs: neither meets a budget.
    """
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    error = np.square(value - reference).sum()
    if error == 0:
        return math.inf
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(reference).sum() / error))


def psnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """PSNR in dB of two images in [-1, 1], clipped to it, with the peak of 2 that this range has."""
    difference = np.clip(value, -1, 1).astype(np.float64) - np.clip(reference, -1, 1)
    error = np.square(difference).mean()
    return math.inf if error == 0 else 10 * math.log10(4 / error)
