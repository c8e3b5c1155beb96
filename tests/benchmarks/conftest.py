"""Bundles and checkpoints that the benchmark tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod_runtime.bundle.bundle import Bundle
from tests.runtime.toy_bundle import write_toy_bundle


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle that returns every image unchanged."""
    from dod.data.degradations import DEGRADATIONS

    folder = tmp_path_factory.mktemp("identity") / "bundle"
    return write_toy_bundle(folder, effect=0, precisions=["fp32"], conditions=DEGRADATIONS)


@pytest.fixture(scope="session")
def condition(tiny_bundle: Path) -> str:
    """Condition of the tiny bundle."""
    return next(iter(Bundle.open(tiny_bundle).manifest.conditions))


@pytest.fixture(scope="session")
def other_checkpoint(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model on the base of the tiny bundle."""
    import torch

    from benchmarks.reference import load_reference
    from dod.checkpoint import save_checkpoint

    model = load_reference(Bundle.open(tiny_bundle))
    folder = tmp_path_factory.mktemp("other")
    with torch.no_grad():
        for name, parameter in model.adaptation_parameters().items():
            if name.endswith("lora_B.weight"):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_checkpoint(model, folder)
    return folder
