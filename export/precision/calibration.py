"""Calibration images, the pipeline on them in any precision, and the quality of its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dod.data.degradations import degrade, rng_for
from dod.data.images import centre_crop
from dod.model.dod import DOD
from dod_runtime.image.geometry import crops, pad, padded_size
from dod_runtime.image.read import read
from export.graphs.fp16 import SummedInFloat32
from export.parity.compare import psnr_db, snr_db
from export.parity.reference import TorchPipeline
from export.precision.probe import Probe

__all__ = [
    "SIDE",
    "CalibrationImage",
    "PipelineOutput",
    "Quality",
    "load_image",
    "measure_quality",
    "restore",
    "worst",
]

SIDE = 256
"""Maximum side in pixels of a calibration image."""
DEGRADED_SIDE = 1024
"""Maximum side in pixels of a photograph that is degraded. Degrading a large one takes seconds."""


@dataclass(frozen=True)
class CalibrationImage:
    """An image that precision is measured on; float32 in [-1, 1].

    Attributes:
        name: File name, with the degradation that was applied.
        image: Middle of the photograph, [1, 3, H, W] of at most `SIDE` px.
        crops: Native crops of the whole photograph, [1, K, 3, R, R].
    """

    name: str
    image: Tensor
    crops: Tensor


@dataclass(frozen=True)
class PipelineOutput:
    """Results of a pipeline for one image, float32.

    Attributes:
        latent: Restored latent z0 [1, 4, h, w].
        decoded: The decoder's image [1, 3, H, W], before the post-processing.
        image: The restored image [1, 3, H, W].
    """

    latent: np.ndarray
    decoded: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class Quality:
    """Quality of a pipeline's results compared with fp32. Both are -inf if a result is not finite.

    Attributes:
        psnr_db: PSNR of the decoded image in dB.
        z0_snr_db: SNR of the restored latent in dB.
    """

    psnr_db: float
    z0_snr_db: float


def load_image(path: Path, model: DOD, degradation: str = "") -> CalibrationImage:
    """Load the middle of a photograph at its native resolution, padded to the model's size multiple.

    Args:
        path: Image file.
        model: The model, whose sizes and crops are used.
        degradation: One of `dod.data.degradations` to apply first, the same in every run; "" for none.

    Returns:
        The image.
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
    return CalibrationImage(name, *(torch.from_numpy(np.ascontiguousarray(value)) for value in (image, taken)))


def restore(
    models: DOD | Mapping[str, DOD],
    image: CalibrationImage,
    probe: Probe | None = None,
    reuse: dict[tuple[str, int], dict[str, Tensor]] | None = None,
) -> PipelineOutput:
    """Restore an image on the path `auto`, with 16-bit sums in float32.

    Args:
        models: One model, or one for each of `export.graphs.fp16.COMPONENTS`.
        image: The image.
        probe: Probe to enter while the pipeline runs. It sees results after they are rounded.
        reuse: See `TorchPipeline.restore`.

    Returns:
        The results.
    """
    with SummedInFloat32(), probe or nullcontext():
        values = TorchPipeline(models).restore(image.image, image.crops, reuse=reuse)
    return PipelineOutput(values["latent_restored"].float().numpy(), values["decoded"].numpy(), values["image"].numpy())


def measure_quality(output: PipelineOutput, reference: PipelineOutput) -> Quality:
    """Compare the results of a pipeline with those of the fp32 pipeline.

    The decoded images are compared: where the post-processing passes the degraded image on, restored images agree
    whatever the model computes.

    Args:
        output: Results of the pipeline.
        reference: Results of the fp32 pipeline.

    Returns:
        PSNR and SNR.
    """
    if not (np.isfinite(output.decoded).all() and np.isfinite(output.latent).all()):
        return Quality(-math.inf, -math.inf)
    return Quality(psnr_db(reference.decoded, output.decoded), snr_db(reference.latent, output.latent))


def worst(qualities: Sequence[Quality]) -> int:
    """Return the index of the lowest PSNR.

    Args:
        qualities: Qualities or comparisons, at least one.

    Returns:
        Its index.
    """
    return min(range(len(qualities)), key=lambda i: qualities[i].psnr_db)
