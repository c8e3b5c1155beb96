"""Calibration images, and the quality of a pipeline's results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dod.model.dod import DOD
from export.precision.calibration import PipelineOutput, Quality, load_image, measure_quality, worst


def test_a_degraded_image_is_the_same_every_time(model: DOD, paths: list[Path]) -> None:
    plain, noisy, again = (load_image(paths[0], model, name) for name in ("", "noise", "noise"))
    assert noisy.name == "a.png (noise)" and plain.image.shape == noisy.image.shape
    assert torch.equal(noisy.image, again.image) and not torch.equal(noisy.image, plain.image)
    assert not torch.equal(noisy.crops, plain.crops) and noisy.image.abs().max() <= 1


def test_quality_by_hand() -> None:
    latent, image = np.ones((1, 4, 2, 2), np.float32), np.zeros((1, 3, 4, 4), np.float32)
    reference = PipelineOutput(latent, image, image + 0.5)
    found = measure_quality(replace(reference, latent=latent * 1.1, decoded=image + 0.02), reference)
    assert found.z0_snr_db == pytest.approx(20, abs=1e-3) and found.psnr_db == pytest.approx(40, abs=1e-3)
    lost = measure_quality(replace(reference, decoded=image * np.nan), reference)
    assert lost == Quality(-math.inf, -math.inf)
    assert worst([found, lost, found]) == 1
