"""Wrong refits are detected, on results of ONNX Runtime for the fp16 graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dod_runtime.backends.base import BackendOptions
from dod_runtime.backends.onnxruntime import OnnxRuntime
from dod_runtime.backends.tensorrt.refit import MARGIN_DB, UNMEASURED_DB, refit_reason, refit_threshold
from dod_runtime.bundle.bundle import Bundle


def test_a_wrong_refit_is_detected(toy: Bundle) -> None:
    """Right weights pass; a bias of zero, the weights of another condition and NaN do not."""
    latent = np.random.default_rng(0).standard_normal((1, 192, 4, 4), np.float32)
    inputs = {"latent": latent, "modulation": toy.modulation("haze")[None]}
    backend = OnnxRuntime("onnxruntime_cpu", toy, BackendOptions(precision="fp16", num_threads=1))
    expected = backend.run("unet_dynamic", inputs)["latent_restored"]

    def found(spoilt: str = "", condition: str = "haze") -> np.ndarray:
        values = toy.merged(toy.manifest.precisions["fp16"], condition)
        values |= {name: np.zeros_like(value) for name, value in values.items() if name == spoilt}
        session = backend._open("unet_merged", values, ())
        return session.run(["latent_restored"], {"latent": latent})[0]

    threshold = refit_threshold(toy.manifest)
    assert threshold == UNMEASURED_DB and refit_reason(expected, found(), threshold) is None
    for wrong in (found("conv.bias"), found(condition="noise"), np.full_like(expected, np.nan)):
        reason = refit_reason(expected, wrong, threshold)
        assert reason and f"{UNMEASURED_DB} dB" in reason


def test_the_threshold_is_that_of_fp16_in_pytorch_less_a_margin(toy: Bundle) -> None:
    rows = (
        {"step": "torch fp16", "component": "unet_merged", "snr_db": 69.5},
        {"step": "torch fp16", "component": "unet_dynamic", "snr_db": 72.0},
        {"step": "torch fp16", "component": "mfm"},
        {"step": "onnx fp16", "component": "unet_merged", "snr_db": 50.0},
    )
    assert refit_threshold(replace(toy.manifest, parity=rows)) == 69.5 - MARGIN_DB


def test_the_step_is_one_that_the_export_measures() -> None:
    from export.parity.compare import THRESHOLDS

    assert ("pipeline", "torch fp16") in THRESHOLDS
