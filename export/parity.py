"""Proof that a bundle computes what PyTorch computes: step by step, on photographs, each figure with its witness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from dod import clora
from dod.model import DOD
from runtime.bundle import Bundle
from runtime.console import table
from runtime.restorer import Restorer

SNR_BUDGET_DB = {"merged": 80.0, "onnx fp32": 80.0}
PSNR_BUDGET_DB = {"half": 45.0, "onnx fp16": 45.0}

WITNESS = {
    "merged": "PyTorch fp32, CPU: merged weights against the low-rank branches",
    "onnx fp32": "ONNX Runtime CPU, fp32",
    "half": "PyTorch CPU in true half arithmetic, with the fp32 islands",
    "onnx fp16": "ONNX Runtime CPU: the graph and its half weights; its arithmetic is fp32, so it cannot show an overflow",
}


@dataclass(frozen=True)
class Figure:
    """One comparison with PyTorch fp32. psnr_db: of the picture clipped to its range (peak 1), chain only."""

    picture: str
    path: str
    component: str
    step: str
    witness: str
    max_abs: float
    snr_db: float
    psnr_db: float | None
    budget: str | None
    passed: bool


@dataclass(frozen=True)
class Sample:
    """A photograph ready for the chain: image [1, 3, H, W] and crops [1, K, 3, R, R], float32 in [-1, 1]."""

    name: str
    condition: str
    image: np.ndarray
    crops: np.ndarray


class TorchChain:
    """The components of a PyTorch model under the names of the bundle's; `unet` may be a merged copy."""

    def __init__(self, model: DOD, unet: nn.Module | None = None) -> None:
        self.model, self.unet = model, unet

    @torch.no_grad()
    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        outputs: dict[str, Tensor] = {}
        if component == "mfm":
            outputs["condition"], outputs["modulation"] = self.model.mfm(tensors["crops"])
        elif component == "encoder":
            outputs["latent"], skips = self.model.encoder(tensors["image"])
            outputs |= {f"skip_{i}": skip for i, skip in enumerate(skips)}
        elif component == "unet_dynamic":
            outputs["latent_restored"] = self.model.unet(tensors["latent"], tensors["modulation"])
        elif component == "unet_merged":
            assert self.unet is not None
            outputs["latent_restored"] = self.unet(tensors["latent"])
        else:
            skips = [tensors[f"skip_{i}"] for i in range(len(tensors) - 1)]
            outputs["image"] = self.model.decoder(tensors["latent_restored"], skips)
        return {name: value.numpy() for name, value in outputs.items()}


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal-to-noise ratio in dB, in float64: 10 log10(sum ref^2 / sum (value - ref)^2). Infinite where equal."""
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    error = np.square(value - reference).sum()
    return math.inf if error == 0 else 10 * math.log10(np.square(reference).sum() / error)


def psnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """PSNR in dB of two pictures in [-1, 1], clipped to it, with the peak of 2 that this range has."""
    difference = np.clip(value, -1, 1).astype(np.float64) - np.clip(reference, -1, 1)
    error = np.square(difference).mean()
    return math.inf if error == 0 else 10 * math.log10(4 / error)
