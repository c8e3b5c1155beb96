"""Checks whether a refitted engine has the weights that it was given."""

from __future__ import annotations

import numpy as np

from ...bundle.schema import Manifest

__all__ = ["refit_reason", "refit_threshold"]

MARGIN_DB = 8.0
"""Allowance in dB for two engines in fp16 instead of one model in PyTorch: the errors of both add up, and their kernels
round where PyTorch does not."""
UNMEASURED_DB = 40.0
"""Threshold in dB of a refit where the bundle has no parity results in fp16."""


def refit_threshold(manifest: Manifest) -> float:
    """Return the minimum SNR in dB of the refitted UNet, measured against the dynamic one.

    It is the SNR that the export measured for both in fp16 against fp32, less `MARGIN_DB`.

    Args:
        manifest: manifest of the bundle.
    """
    unets = ("unet_dynamic", "unet_merged")
    rows = [row for row in manifest.parity if row.get("step") == "torch fp16" and row.get("component") in unets]
    return min((float(row["snr_db"]) for row in rows), default=UNMEASURED_DB + MARGIN_DB) - MARGIN_DB


def refit_reason(expected: np.ndarray, found: np.ndarray, threshold: float) -> str | None:
    """Return the reason why an engine does not have the weights of its last refit, None where it has them.

    Args:
        expected: result of the dynamic UNet for one latent.
        found: result of the refitted UNet for the same latent.
        threshold: minimum SNR in dB.
    """
    error = float(np.square(found - expected, dtype=np.float64).mean() / np.square(expected, dtype=np.float64).mean())
    if error <= 10 ** (-threshold / 10):
        return None
    return f"SNR {-10 * np.log10(error):.1f} dB against the dynamic path, below the threshold of {threshold:.1f} dB"
