"""Fixtures of the export tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dod.model.dod import DOD
from export.cache import BuildCache
from export.options import BuildOptions
from export.plan import BuildPlan, make_plan
from tests.dod.small_model import normal, randomise, smaller
from tests.export.small_graphs import export_block

MakePlan = Callable[..., BuildPlan]


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """block.onnx: convolution, group normalisation and attention, in fp16."""
    return export_block(tmp_path_factory.mktemp("graph") / "block.onnx")


@pytest.fixture(scope="session")
def model() -> DOD:
    """A model with two levels, random adaptation, and prototypes of two conditions. No test changes it."""
    model = randomise(DOD.from_preset(smaller()), strength=0.05)
    channels: Any = model.mfm.h_space.channels
    model.prototypes = {name: normal(channels, seed=seed) for seed, name in enumerate(("rain", "haze"))}
    return model


@pytest.fixture
def make(model: DOD, tmp_path: Path) -> MakePlan:
    """A function that returns the plan of a build of `model` with these images, of which no file exists."""

    def plan(*images: str, precisions: tuple[str, ...] = ("fp32", "fp16"), refit: bool = False) -> BuildPlan:
        for name in images:
            (tmp_path / name).write_bytes(name.encode())
        options = BuildOptions(
            checkpoint="smaller",
            base=None,
            ddpm=None,
            out=tmp_path / "bundle",
            targets=("onnxruntime", "tensorrt_rtx"),
            precisions=precisions,
            measured_precisions=(),
            conditions=None,
            engine_conditions=["rain"],
            refit=refit,
            size=(16, 32, 64),
            batch=(1, 1, 1),
            capabilities=("8.9",),
            fp32_modules=None,
            images=tmp_path,
            workers=1,
        )
        return make_plan(options, model, BuildCache(options.out), tuple(tmp_path / name for name in sorted(images)))

    return plan
