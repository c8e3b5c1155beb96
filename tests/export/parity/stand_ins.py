"""Stand-ins for parity checks: a bundle without files, and a model in place of its graphs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import ComponentSpec, Crops, Manifest, PrecisionFiles, ShapeProfile, TensorSpec
from export.graphs.fp16 import default_fp32_modules
from export.parity.bundle_process import CheckedRun, ReferenceStore, check_runs
from export.parity.check import check_parity
from export.parity.compare import ParityResult
from export.parity.reference import TorchPipeline
from export.parity.runs import ParityRun, ParitySample, ParityStep, Values, paths_of
from export.parity.sequence import EncoderCache
from tests.dod.small_model import randomise, smaller

Substitute = Callable[..., None]
CheckBundle = Callable[[list[ParityRun]], list[CheckedRun]]


def bundle(precisions: tuple[str, ...] = ("fp32",)) -> Bundle:
    """The manifest that a parity check needs, without any file."""
    latent, modulation = TensorSpec("latent", "float32", ()), TensorSpec("modulation", "float32", ())
    skips = tuple(TensorSpec(f"skip_{i}", {"fp32": "float32", "fp16": "float16"}, ()) for i in range(2))
    inputs = {
        "mfm": (TensorSpec("crops", "float32", ()),),
        "encoder": (TensorSpec("image", "float32", ()),),
        "unet_dynamic": (latent, modulation),
        "unet_merged": (latent,),
        "decoder": (TensorSpec("latent_restored", "float32", ()), *skips),
    }
    manifest = Manifest(
        name="smaller",
        size_multiple=4,
        profile=ShapeProfile((1, 1, 1), (16, 32, 64)),
        crops=Crops(4, 32),
        components={name: ComponentSpec(specs, ()) for name, specs in inputs.items()},
        precisions={name: PrecisionFiles({}, {}) for name in precisions},
        merge=(),
        conditions={"rain": "conditions/rain.safetensors"},
        targets={},
        files={},
    )
    return Bundle(Path("nowhere"), manifest)


class PassingBundle(Bundle):
    """A bundle with a condition on which every image passes the model."""

    def condition_tensors(self, condition: str) -> dict[str, np.ndarray]:
        return {"condition": np.zeros(32, np.float32), "share": np.ones(1, np.float32)}


def gated(checked: Bundle) -> Bundle:
    """The same bundle with a gate; every image of a named condition passes the model."""
    float32 = {name: TensorSpec(name, "float32", ("batch", 2)) for name in ("crops", "condition", "share", "gains")}
    gate = ComponentSpec((float32["crops"], float32["condition"]), (float32["share"], float32["gains"]))
    decisions = (TensorSpec("degraded", "float32", ()), float32["share"], float32["gains"])
    components = dict(checked.manifest.components)
    components["decoder"] = ComponentSpec((*components["decoder"].inputs, *decisions), ())
    return PassingBundle(checked.folder, replace(checked.manifest, components={**components, "gate": gate}))


def passing_model(model: DOD) -> DOD:
    """A random model with post-processing, on which images of `rain` pass, with the prototypes of `model`."""
    parts = {"postprocess": {"filters": 2, "taps": 5, "window": 9, "width": 4, "passing": ["rain"]}}
    passing = randomise(DOD.from_preset(smaller(**parts)), strength=0.05)
    passing.prototypes = model.prototypes
    assert passing.gate is not None
    torch.nn.init.constant_(passing.gate.passing[-1].bias, 40.0)
    return passing


def bundle_process_of(fp32: DOD, fp16: DOD | None = None) -> Callable[..., object]:
    """A replacement for `bundle_process` that runs models of PyTorch in place of the fp32 and fp16 graphs."""

    @contextmanager
    def bundle_process(step: ParityStep, bundle: Bundle, reference: ReferenceStore) -> Iterator[CheckBundle]:
        assert step.backend == "onnxruntime_cpu"
        pipeline = TorchPipeline(fp16 if step.precision == "fp16" and fp16 is not None else fp32)
        cache = EncoderCache(reference.folder / step.name)
        cache.folder.mkdir()
        yield lambda runs: check_runs(pipeline, step, bundle, runs, reference, cache)

    return bundle_process


def checks_of(model: DOD, checked: Bundle, *samples: ParitySample, computed: Values | None = None) -> list[CheckedRun]:
    """All runs of a parity check of a copy of the model, which the check moves to the meta device."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = paths_of(checked, samples)
        given = copy.deepcopy(model), default_fp32_modules(model), checked, paths, Path(scratch)
        return list(check_parity(*given, computed or {}))


def results_of(model: DOD, checked: Bundle, *samples: ParitySample) -> list[ParityResult]:
    """All results of a parity check."""
    return [result for check in checks_of(model, checked, *samples) for result in check.results]
