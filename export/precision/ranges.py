"""Value ranges of the model in fp32 on photographs, and the error of an fp16 copy, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dod.model.dod import DOD
from export.precision.calibration import CalibrationImage, PipelineOutput, Quality, measure_quality, restore
from export.precision.probe import Operation, Probe, sample_positions

__all__ = [
    "ERROR_SAMPLES",
    "LARGEST",
    "NORMAL",
    "SAFETY",
    "SHARE_SAMPLES",
    "SUBNORMAL",
    "CalibrationReference",
    "PrecisionComparison",
    "ValueRange",
    "compare",
    "measure_ranges",
    "measure_weights",
]

LARGEST = 65504.0
"""Largest float16 number."""
NORMAL = 2.0**-14
"""Smallest normal float16 number: below it, numbers have fewer bits."""
SUBNORMAL = 2.0**-24
"""Smallest positive float16 number. Values up to half of it become 0."""
SAFETY = 2.0
"""Factor on a range that was measured on the calibration images, before it is compared with `LARGEST`."""
SHARE_SAMPLES, ERROR_SAMPLES = 65536, 4096
"""Number of randomly chosen elements of a tensor used for shares and RMS, and for errors. Maxima use every element."""


@dataclass
class ValueRange:
    """Range of an operation's result in float32, over all images.

    Attributes:
        stack: Modules that are being called, the component first.
        largest: Largest magnitude.
        squares: Sum of squares of the sampled elements.
        subnormal: Number of sampled non-zero elements that are subnormal in float16.
        flushed: Number of sampled non-zero elements that become 0 in float16.
        sampled: Number of sampled elements.
        nonzero: Number of sampled elements that are not 0.
    """

    stack: tuple[str, ...]
    largest: float = 0.0
    squares: float = 0.0
    subnormal: int = 0
    flushed: int = 0
    sampled: int = 0
    nonzero: int = 0

    def add(self, result: Tensor) -> None:
        """Include one result.

        Args:
            result: Tensor of any shape.
        """
        flat = result.detach().reshape(-1)
        self.largest = max(self.largest, float(flat.abs().amax()))
        sample = flat[sample_positions(flat.numel(), SHARE_SAMPLES)].abs()
        self.squares += float(sample.double().square().sum())
        self.sampled += sample.numel()
        self.nonzero += int((sample > 0).sum())
        self.subnormal += int(((sample > 0) & (sample < NORMAL)).sum())
        self.flushed += int(((sample > 0) & (sample <= SUBNORMAL / 2)).sum())

    @property
    def rms(self) -> float:
        """Root mean square of the sampled elements."""
        return math.sqrt(self.squares / max(1, self.sampled))

    @property
    def headroom(self) -> float:
        """Doublings left between the largest magnitude and 65,504; negative beyond it."""
        return math.log2(LARGEST / self.largest) if self.largest else math.inf

    def share(self, count: int) -> float:
        """Return a count as a share of the non-zero elements.

        Args:
            count: `subnormal` or `flushed`.

        Returns:
            0 to 1.
        """
        return count / max(1, self.nonzero)


@dataclass(frozen=True)
class CalibrationReference:
    """The fp32 pipeline on one image.

    Attributes:
        image: The image.
        output: Results of the pipeline.
        samples: Sampled elements of every intermediate result, by operation.
    """

    image: CalibrationImage
    output: PipelineOutput
    samples: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PrecisionComparison(Quality):
    """A pipeline of lower precision on one image, operation by operation.

    Attributes:
        image: Name of the image.
        snr: SNR in dB of each operation's result, in the order in which they ran; NaN if it is not finite.
        overflows: Operations whose results are not finite.
        reduced: Names of the operations whose results are not float32.
    """

    image: str
    snr: dict[str, float]
    overflows: list[Operation]
    reduced: set[str]


def measure_ranges(
    model: DOD, images: Iterable[CalibrationImage], ranges: dict[str, ValueRange]
) -> Iterable[CalibrationReference]:
    """Run the fp32 model on each image and measure the range of every intermediate result.

    Args:
        model: The model in fp32.
        images: Calibration images.
        ranges: Range of each operation, attention scores included; updated with every image.

    Yields:
        The reference of each image.
    """
    for image in images:
        samples: dict[str, Tensor] = {}

        def on_result(operation: Operation, result: Tensor, samples: dict[str, Tensor] = samples) -> None:
            ranges.setdefault(operation.name, ValueRange(operation.stack)).add(result)
            if not operation.name.endswith(" scores"):
                samples[operation.name] = _sample(result)

        yield CalibrationReference(image, restore(model, image, Probe(model, on_result, scores=True)), samples)


def compare(low: DOD, reference: CalibrationReference) -> PrecisionComparison:
    """Compare a model of lower precision with the fp32 model on one image, operation by operation.

    Args:
        low: The model of lower precision.
        reference: The fp32 pipeline on the image.

    Returns:
        Quality of the results, and of each intermediate result.
    """
    snr: dict[str, float] = {}
    overflows: list[Operation] = []
    reduced: set[str] = set()

    def on_result(operation: Operation, result: Tensor) -> None:
        expected = reference.samples.get(operation.name)
        if expected is None:
            return
        if result.dtype != torch.float32:
            reduced.add(operation.name)
        found = _sample(result)
        if not bool(found.isfinite().all()) or not bool(result.isfinite().all()):
            overflows.append(operation)
        snr[operation.name] = _snr(expected, found)

    quality = measure_quality(restore(low, reference.image, Probe(low, on_result)), reference.output)
    return PrecisionComparison(quality.psnr_db, quality.z0_snr_db, reference.image.name, snr, overflows, reduced)


def measure_weights(model: DOD) -> dict[str, ValueRange]:
    """Measure the range of every weight with at least two axes.

    Args:
        model: The model.

    Returns:
        Ranges by parameter name.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel():
            found[name] = ValueRange((name,))
            found[name].add(parameter)
    return found


def _sample(result: Tensor) -> Tensor:
    flat = result.detach().reshape(-1)
    return flat[sample_positions(flat.numel(), ERROR_SAMPLES)].float()


def _snr(expected: Tensor, found: Tensor) -> float:
    error = float((found.double() - expected).square().sum())
    if not math.isfinite(error):
        return math.nan
    signal = float(expected.double().square().sum())
    return math.inf if error == 0 else 10 * math.log10(signal / error) if signal else -math.inf
