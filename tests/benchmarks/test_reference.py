"""The PyTorch reference of the latency benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.reference import TorchModel, load_reference
from benchmarks.runners import Job, Runner
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.errors import BundleError
from dod_runtime.restorer import Restorer
from export.parity.compare import psnr_db


def test_another_checkpoint_is_refused(tiny_bundle: Path, other_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="was built from the checkpoint .*--checkpoint"):
        load_reference(Bundle.open(tiny_bundle), str(other_checkpoint))


def test_components_equal_the_whole_model(tiny_bundle: Path, condition: str) -> None:
    """Run component by component, PyTorch equals the whole module; merged weights equal low-rank branches."""
    bundle = Bundle.open(tiny_bundle)
    model = load_reference(bundle)
    reference, fp16 = TorchModel(model, "cpu", "fp32"), TorchModel(model, "cpu", "fp16")
    for each in (reference, fp16):
        each.merge([condition])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with Restorer(bundle, "onnxruntime_cpu") as restorer, torch.no_grad():
        found = {path: Runner(reference, restorer, Job(pixels, 1, path)).restore() for path in ("auto", condition)}
        image = torch.from_numpy(restorer.prepare(pixels).image[None])
        native = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
        assert np.abs(found["auto"] - model(image, model.modulation(native)[1]).numpy()).max() < 1e-5
        modulation = model.mfm.network(model.prototypes[condition][None])
        assert np.abs(found[condition] - model(image, modulation).numpy()).max() < 1e-4
        for path, truth in found.items():
            assert 40 < psnr_db(truth, Runner(fp16, restorer, Job(pixels, 1, path)).restore()) < 90
