"""What half precision has room for, and what the model computes: the float32 range of every result on photographs, and
a true half run beside float32, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dod.data.degradations import degrade, rng_for
from dod.data.images import centre_crop
from dod.model.dod import DOD
from dod_runtime.image.geometry import crops, pad, padded_size
from dod_runtime.image.read import read
from export.graphs.fp16 import COMPONENTS, SummedInFloat32
from export.parity.compare import psnr_db, snr_db
from export.precision.probe import Operation, Probe, positions

LARGEST = 65504.0
NORMAL = 2.0**-14
"""The smallest number that float16 holds with all of its bits."""
SUBNORMAL = 2.0**-24
"""The smallest float16 above 0: what is below half of it becomes 0."""
SAFETY = 2.0
"""What a range on the calibration images is multiplied with before it is held against `LARGEST`."""
SIDE = 256
DEGRADED_SIDE = 1024
"""Pixels per side that a photograph is cut to before it is degraded: the degradations of a large one take seconds."""
SHARE_SAMPLES, ERROR_SAMPLES = 65536, 4096
"""Places of a tensor that shares and mean squares are taken from, and that an error is; a maximum is over all."""


@dataclass(frozen=True)
class Sample:
    """A calibration image: image [1, 3, H, W], at most `SIDE` px from the middle of a photograph, and the crops
    [1, K, 3, R, R] of the whole; float32 in [-1, 1]."""

    name: str
    image: Tensor
    crops: Tensor


@dataclass
class Range:
    """What an operation's result spans in float32, over all images.

    subnormal, flushed: the share of what is not 0 that float16 holds with fewer bits, or not at all.
    """

    stack: tuple[str, ...]
    largest: float = 0.0
    squares: float = 0.0
    subnormal: float = 0.0
    flushed: float = 0.0
    seen: int = 0
    values: int = 0

    def add(self, result: Tensor) -> None:
        """Take one result into account."""
        flat = result.detach().reshape(-1)
        self.largest = max(self.largest, float(flat.abs().amax()))
        sample = flat[positions(flat.numel(), SHARE_SAMPLES)].abs()
        self.squares += float(sample.double().square().sum())
        self.seen += sample.numel()
        self.values += int((sample > 0).sum())
        self.subnormal += int(((sample > 0) & (sample < NORMAL)).sum())
        self.flushed += int(((sample > 0) & (sample <= SUBNORMAL / 2)).sum())

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / max(1, self.seen))

    @property
    def headroom(self) -> float:
        """Doublings left between the largest value and 65,504; negative beyond it."""
        return math.log2(LARGEST / self.largest) if self.largest else math.inf

    def share(self, what: float) -> float:
        return what / max(1, self.values)


@dataclass(frozen=True)
class Outcome:
    """What one chain gave for an image, float32: latent_restored [1, 4, h, w], the decoder's own result [1, 3, H, W],
    and the image [1, 3, H, W], which post-processing may have changed, by these decisions (`share`, `gains`)."""

    latent: np.ndarray
    decoded: np.ndarray
    image: np.ndarray
    decisions: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """An outcome against float32's: PSNR at the image and SNR at z0, dB; -inf where it is not finite."""

    psnr_db: float
    z0_snr_db: float


@dataclass(frozen=True)
class Reference:
    """The float32 chain on one image: its outcome, and samples of every result for comparison."""

    image: Sample
    outcome: Outcome
    samples: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison(Judged):
    """A chain of lower precision on one image. snr: dB of each operation's result against float32, in the order they
    came (NaN where it is not finite); overflows: those that were finite in float32 alone; low: those not in float32."""

    image: str
    snr: dict[str, float]
    overflows: list[Operation]
    low: set[str]


def load_image(path: Path, model: DOD, degradation: str = "") -> Sample:
    """The middle of a photograph at its own resolution, padded where it is no multiple of what the model takes.

    degradation: one of `dod.data.degradations` to apply before, the same in every run; "" for none.
    """
    pixels, preset = read(path).pixels, model.preset
    if degradation:
        clean = np.clip((centre_crop(pixels, DEGRADED_SIDE) + 1) / 2, 0, 1).astype(np.float32)
        pixels = degrade(clean, degradation, rng_for(path.name, degradation, 0))[0] * 2 - 1
    middle = centre_crop(pixels, SIDE)
    limits = preset.size_multiple, preset.size_multiple, 1 << 20
    image = pad(middle, *(padded_size(side, *limits) for side in middle.shape[:2])).transpose(2, 0, 1)[None]
    taken = crops(pixels, preset.mfm.crops, preset.mfm.crop_size)[None]
    name = f"{path.name} ({degradation})" if degradation else path.name
    return Sample(name, *(torch.from_numpy(np.ascontiguousarray(value)) for value in (image, taken)))


@torch.no_grad()
def restore(
    parts: DOD | Mapping[str, DOD], sample: Sample, probe: Probe | None = None, known: dict | None = None
) -> Outcome:
    """The chain on path `auto`. parts: one model, or one for each of `COMPONENTS`. probe: entered for the time of it,
    inside the rounding of what is not float32, so that it sees what is rounded. known: what the components that take
    the image itself gave of it, by model; what is missing is added, for calls with others of the same models."""
    use: Mapping[str, DOD] = dict.fromkeys(COMPONENTS, parts) if isinstance(parts, DOD) else parts
    known = {} if known is None else known

    def once(component: str, compute: Callable[[], Any]) -> Any:
        key = component, id(use[component])
        if key not in known:
            known[key] = compute()
        return known[key]

    decoder = use["decoder"].decoder
    low = next((p.dtype for p in decoder.parameters() if p.dtype != torch.float32), torch.float32)
    with SummedInFloat32(), probe or nullcontext():
        condition, modulation = once("mfm", lambda: use["mfm"].mfm(sample.crops))
        latent, skips = once("encoder", lambda: use["encoder"].encoder(sample.image))
        restored = use["unet"].unet(latent, modulation)
        decoded = decoder(restored, [skip.to(low) for skip in skips]).float()
    gate, post = use["decoder"].gate, use["decoder"].postprocess
    if gate is None or post is None:
        return Outcome(restored.float().numpy(), decoded.numpy(), decoded.numpy())
    share, gains = gate(sample.crops, condition.float())
    image = post(decoded, sample.image, share, gains)
    decisions = {"share": share.numpy(), "gains": gains.numpy()}
    return Outcome(restored.float().numpy(), decoded.numpy(), image.numpy(), decisions)


def measure_ranges(model: DOD, images: Iterable[Sample], ranges: dict[str, Range]) -> Iterable[Reference]:
    """The float32 reference of each image in turn; `ranges` takes in every result on the way, scores included."""
    for image in images:
        samples: dict[str, Tensor] = {}

        def see(operation: Operation, result: Tensor, samples: dict[str, Tensor] = samples) -> None:
            ranges.setdefault(operation.name, Range(operation.stack)).add(result)
            if not operation.name.endswith(" scores"):
                samples[operation.name] = _sample(result)

        yield Reference(image, restore(model, image, Probe(model, see, scores=True)), samples)


def compare(low: DOD, reference: Reference) -> Comparison:
    """A model of lower precision on the image of a reference, each operation against float32's on the same way."""
    snr: dict[str, float] = {}
    overflows: list[Operation] = []
    names: set[str] = set()

    def see(operation: Operation, result: Tensor) -> None:
        expected = reference.samples.get(operation.name)
        if expected is None:
            return
        if result.dtype != torch.float32:
            names.add(operation.name)
        found = _sample(result)
        if not bool(found.isfinite().all()) or not bool(result.isfinite().all()):
            overflows.append(operation)
        snr[operation.name] = _snr(expected, found)

    figures = judged(restore(low, reference.image, Probe(low, see)), reference.outcome)
    return Comparison(figures.psnr_db, figures.z0_snr_db, reference.image.name, snr, overflows, names)


def judged(outcome: Outcome, reference: Outcome) -> Judged:
    """An outcome against float32's, by what the decoder gave: a share that passes the model would hide its errors."""
    if not (np.isfinite(outcome.decoded).all() and np.isfinite(outcome.latent).all()):
        return Judged(-math.inf, -math.inf)
    return Judged(psnr_db(reference.decoded, outcome.decoded), snr_db(reference.latent, outcome.latent))


def measure_weights(model: DOD) -> dict[str, Range]:
    """The range of every weight of two axes or more, by name."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.numel():
            found[name] = Range((name,))
            found[name].add(parameter)
    return found


def worst(comparisons: Sequence[Judged]) -> int:
    """The place of the one with the least PSNR."""
    return min(range(len(comparisons)), key=lambda i: comparisons[i].psnr_db)


def _sample(result: Tensor) -> Tensor:
    flat = result.detach().reshape(-1)
    return flat[positions(flat.numel(), ERROR_SAMPLES)].float()


def _snr(expected: Tensor, found: Tensor) -> float:
    error = float((found.double() - expected).square().sum())
    if not math.isfinite(error):
        return math.nan
    signal = float(expected.double().square().sum())
    return math.inf if error == 0 else 10 * math.log10(signal / error) if signal else -math.inf
