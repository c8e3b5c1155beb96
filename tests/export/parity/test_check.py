"""The proof, step by step: the same model passes, a wrong weight fails and shows where, nothing is run twice."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import ComponentSpec, Crops, Manifest, PrecisionFiles, ShapeProfile, TensorSpec
from export.cache import BuildCache
from export.errors import ParityError
from export.graphs.fp16 import default_fp32_modules, fp16_copy
from export.parity import check
from export.parity.check import TorchPipeline, check_count, check_parity
from export.parity.compare import Figure
from export.parity.reference import (
    ParityCheck,
    Run,
    Sample,
    Shared,
    Subject,
    Values,
    Wanted,
    bundle_process,
    compare,
    load_sample,
    paths_of,
    run_pipeline,
    sample_pixels,
    subjects,
)
from export.steps.simplification import COSTS, Simplification, read_results
from tests.dod.small_model import image, randomise, smaller

Change = Callable[[DOD], torch.Tensor]
Substitute = Callable[..., None]


def bundle(precisions: tuple[str, ...] = ("fp32",)) -> Bundle:
    """As much of a bundle as a proof looks at; the graphs are stood in for by a model (see `substitute`)."""
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


@pytest.fixture
def sample() -> Sample:
    return Sample("rain.png", "rain", {"image": image(1, 16, 24).numpy(), "crops": image(4, 32, 32)[None].numpy()})


@pytest.fixture
def substitute(monkeypatch: pytest.MonkeyPatch) -> Substitute:
    """Makes one model stand in for the fp32 graphs of a bundle, another for the fp16 ones."""

    def stand_in(single: DOD, fp16: DOD | None = None) -> None:
        @contextmanager
        def bundle_process(
            subject: Subject, bundle: Bundle, wanted: Wanted
        ) -> Iterator[Callable[..., list[ParityCheck]]]:
            assert subject.backend == "onnxruntime_cpu"
            computer = TorchPipeline(fp16 if subject.precision == "fp16" and fp16 is not None else single)
            shared = Shared(wanted.folder / subject.step)
            shared.folder.mkdir()
            yield lambda runs: compare(computer, subject, bundle, runs, wanted, shared)

        monkeypatch.setattr(check, "bundle_process", bundle_process)

    return stand_in


def checks_of(model: DOD, checked: Bundle, *samples: Sample, computed: Values | None = None) -> list[ParityCheck]:
    with tempfile.TemporaryDirectory() as scratch:  # and a copy, for it uses the model up
        paths = paths_of(checked, samples)
        given = copy.deepcopy(model), default_fp32_modules(model), checked, paths, Path(scratch)
        return list(check_parity(*given, computed or {}))


def figures_of(model: DOD, checked: Bundle, *samples: Sample) -> list[Figure]:
    return [figure for check in checks_of(model, checked, *samples) for figure in check.figures]


def test_the_same_model_passes(model: DOD, sample: Sample, substitute: Substitute) -> None:
    substitute(copy.deepcopy(model))
    figures = figures_of(model, bundle(), sample)
    assert all(each.passed for each in figures)
    found = {(each.path, each.component, each.step) for each in figures}
    dynamic = ("mfm", "encoder", "unet_dynamic", "decoder")
    assert found == {
        *(("auto", component, "onnx fp32") for component in ("pipeline", *dynamic)),
        *(("rain", component, "onnx fp32") for component in ("pipeline", "unet_merged")),
        ("rain", "pipeline", "merged"),
        ("rain", "layer", "merged"),
    }
    assert all(each.max_abs == 0 for each in figures if each.step == "onnx fp32")
    merged_figures = [each for each in figures if each.step == "merged"]
    assert all(each.max_abs > 0 for each in merged_figures), "two ways of computing, not one compared with itself"


def wrong_weight(model: DOD, change: Change) -> DOD:
    planted = copy.deepcopy(model)
    with torch.no_grad():
        change(planted)
    return planted


@pytest.mark.parametrize(
    ("change", "component"),
    [
        (lambda m: m.unet.unet.conv_in.weight.view(-1)[5].add_(0.05), "unet_dynamic"),
        (lambda m: m.decoder.decoder.conv_out.weight.view(-1)[3].add_(0.05), "decoder"),
        (lambda m: m.encoder.encoder.conv_in.bias[0].add_(0.05), "encoder"),
        (lambda m: next(m.mfm.network.parameters()).mul_(1.05), "mfm"),
    ],
)
def test_one_wrong_weight_fails_the_chain_and_shows_where(
    model: DOD, sample: Sample, substitute: Substitute, change: Change, component: str
) -> None:
    substitute(wrong_weight(model, change))
    figures = {(each.path, each.component): each for each in figures_of(model, bundle(), sample)}
    assert not figures["auto", "pipeline"].passed
    parts = {name: each.max_abs for (path, name), each in figures.items() if path == "auto" and name != "pipeline"}
    assert {name for name, max_abs in parts.items() if max_abs > 0} == {component}, "each has the reference's inputs"


def gated(checked: Bundle) -> Bundle:
    """The same with a gate, and a condition on which every image passes the model."""
    float32 = {name: TensorSpec(name, "float32", ("batch", 2)) for name in ("crops", "condition", "share", "gains")}
    gate = ComponentSpec((float32["crops"], float32["condition"]), (float32["share"], float32["gains"]))
    decisions = (TensorSpec("degraded", "float32", ()), float32["share"], float32["gains"])
    components = dict(checked.manifest.components)
    components["decoder"] = ComponentSpec((*components["decoder"].inputs, *decisions), ())
    return PassingBundle(checked.folder, replace(checked.manifest, components={**components, "gate": gate}))


class PassingBundle(Bundle):
    def values(self, condition: str) -> dict[str, np.ndarray]:
        return {"condition": np.zeros(32, np.float32), "share": np.ones(1, np.float32)}


def test_a_wrong_unet_fails_where_the_image_passes_the_model(
    model: DOD, sample: Sample, substitute: Substitute
) -> None:
    parts = {"postprocess": {"filters": 2, "taps": 5, "window": 9, "width": 4, "passing": ["rain"]}}
    passing = randomise(DOD.from_preset(smaller(**parts)), strength=0.05)
    passing.prototypes = model.prototypes
    assert passing.gate is not None
    torch.nn.init.constant_(passing.gate.passing[-1].bias, 40.0)
    substitute(wrong_weight(passing, lambda m: m.unet.unet.conv_in.weight.view(-1)[5].add_(0.05)))
    figures = [each for each in figures_of(passing, gated(bundle()), sample) if each.step == "onnx fp32"]
    assert {each.component for each in figures if not each.passed} == {"unet_dynamic", "unet_merged"}
    assert any(each.component == "gate" for each in figures), "what decides is compared alone too"


def test_the_merged_unet_is_compared_alone_on_every_path(sample: Sample) -> None:
    checked, others = bundle(), [Sample(name, "haze", sample.values) for name in ("haze.png", "haze-2.png")]
    conditions = {name: f"conditions/{name}.safetensors" for name in ("haze", "rain")}
    checked = Bundle(checked.folder, replace(checked.manifest, conditions=conditions))
    runs = [run for path, runs in paths_of(checked, [sample, *others]).items() for run in runs if path != "auto"]
    assert {run.sample.name for run in runs if run.alone == ("unet_merged",)} == {"haze.png", "rain.png"}
    assert len(runs) == 3


def test_a_wrong_merge_fails(
    model: DOD, sample: Sample, substitute: Substitute, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge: Any = check.clora.merge

    def without_beta(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        *others, beta, transposed = arguments
        return merge(*others, torch.zeros_like(beta), transposed)

    monkeypatch.setattr(check.clora, "merge", without_beta)
    substitute(model)
    figures = {(each.component, each.step): each for each in figures_of(model, bundle(), sample)}
    assert not figures["layer", "merged"].passed and not figures["pipeline", "merged"].passed


def test_half_and_its_witness(model: DOD, sample: Sample, substitute: Substitute) -> None:
    fp16 = fp16_copy(model)
    substitute(model, fp16)
    figures = figures_of(model, bundle(("fp32", "fp16")), sample)
    chains = {each.step: each for each in figures if each.component == "pipeline" and each.path == "auto"}
    assert chains.keys() == {"onnx fp32", "torch fp16", "onnx fp16"}
    assert chains["onnx fp32"].max_abs == 0 and chains["onnx fp16"].max_abs == chains["torch fp16"].max_abs
    assert (
        "true half arithmetic" in chains["torch fp16"].measured_with
        and "cannot show an overflow" in chains["onnx fp16"].measured_with
    )
    assert 0 < chains["torch fp16"].max_abs < 0.2


def test_overflow_in_half_fails(model: DOD, sample: Sample, substitute: Substitute) -> None:
    loud = wrong_weight(model, lambda m: m.unet.unet.conv_in.weight.fill_(6e4))  # finite, but their sums not
    fp16 = fp16_copy(loud)
    assert all(parameter.isfinite().all() for parameter in fp16.parameters())
    substitute(loud, fp16)
    figures = figures_of(loud, bundle(("fp16",)), sample)
    chain = next(
        each for each in figures if (each.component, each.step, each.path) == ("pipeline", "torch fp16", "auto")
    )
    assert not chain.passed and not math.isfinite(chain.snr_db)


def test_components_alone_once_and_only_on_the_first_sample(model: DOD, sample: Sample, substitute: Substitute) -> None:
    substitute(model)
    second = Sample("clean.png", "", {**sample.values, "image": image(1, 32, 16, seed=2).numpy()})
    checks = checks_of(model, bundle(), sample, second)
    first = [figure for check in checks if check.sample == sample.name for figure in check.figures]
    figures = [figure for check in checks if check.sample == second.name for figure in check.figures]
    alone = [each.component for each in first if each.component not in ("pipeline", "layer")]
    assert alone == ["mfm", "encoder", "unet_dynamic", "decoder", "unet_merged"] and len(first) == 4 + len(alone)
    assert [(each.path, each.component) for each in figures] == [("auto", "pipeline")]
    assert len(checks) == check_count(bundle(), paths_of(bundle(), [sample, second]))
    restored = next(check.restored for check in reversed(checks) if check.sample == second.name)
    with torch.no_grad():
        crops = torch.from_numpy(second.values["crops"])
        expected = model(torch.from_numpy(second.values["image"]), model.mfm(crops)[1])
    assert np.array_equal(restored, expected.numpy())


def test_the_encoder_runs_once_on_a_sample_for_all_of_its_paths(
    model: DOD, sample: Sample, substitute: Substitute, monkeypatch: pytest.MonkeyPatch
) -> None:
    substitute(model)
    runs: Counter[str] = Counter()
    single = TorchPipeline.run

    def counted(self: TorchPipeline, component: str, inputs: Values, condition: str | None = None) -> dict:
        runs[component] += 1
        return single(self, component, inputs, condition)

    monkeypatch.setattr(TorchPipeline, "run", counted)
    checks = checks_of(model, bundle(), sample)
    assert {check.path for check in checks} == {"auto", "rain"}
    computers = 1 + len(subjects(bundle()))  # the reference among them
    assert runs["encoder"] == computers and runs["unet_merged"] > computers


def test_what_is_computed_already_is_taken_for_its_own_image_alone(
    model: DOD, sample: Sample, substitute: Substitute, tmp_path: Path
) -> None:
    substitute(model)
    run = paths_of(bundle(), [sample])["auto"][0]
    computed = run_pipeline(TorchPipeline(model), run, bundle(), Shared(tmp_path))
    marked = {**computed, "image": computed["image"] + 0.5}
    second = Sample("clean.png", "", {**sample.values, "image": sample.values["image"] * 0.9})
    checks = checks_of(model, bundle(), sample, second, computed=marked)
    found = {check.sample: check.restored for check in checks if (check.step, check.path) == ("merged", "auto")}
    assert np.array_equal(found[sample.name], marked["image"])
    with torch.no_grad():
        crops, image = (torch.from_numpy(second.values[name]) for name in ("crops", "image"))
        assert np.array_equal(found[second.name], model(image, model.mfm(crops)[1]).numpy())


def test_what_the_simplified_model_computed_is_what_the_proof_would(model: DOD, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rain_1.png")
    simplified = copy.deepcopy(model)
    photograph, inputs = tmp_path / "rain_1.png", {"of": "this"}
    with BuildCache(tmp_path / "bundle") as cache:
        first = Simplification(simplified, photograph, inputs)
        assert [name for name, _ in cache.make(first.artifacts())] == [COSTS]
        again = Simplification(copy.deepcopy(model), photograph, inputs)
        assert list(cache.make(again.artifacts())) == [] and again.values == {}
        assert [each.component for each in read_results(cache.path(COSTS))] == ["pipeline"]
    values = first.values
    run = paths_of(bundle(), [load_sample(tmp_path / "rain_1.png", bundle(), ("rain",))])["auto"][0]
    expected = run_pipeline(TorchPipeline(simplified), run, bundle(), Shared(tmp_path))
    assert check._is_of(values, run) and values.keys() == expected.keys()
    assert all(np.array_equal(values[name], value) for name, value in expected.items())


class Fatal:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_parity_process_that_is_ended_says_so(tmp_path: Path) -> None:
    subject = Subject("onnx fp32", "fp32", "onnxruntime_cpu", "fp32")
    with (
        pytest.raises(ParityError, match=r"ran onnx fp32 on path rain was ended from outside.*--samples"),
        bundle_process(subject, bundle(), Wanted(tmp_path)) as compared,
    ):
        compared([Run("rain", (), cast(Sample, Fatal()))])


def test_load_sample(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 18, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "haze_1.png")
    loaded = load_sample(tmp_path / "haze_1.png", bundle(), ("rain", "haze"))
    assert (loaded.name, loaded.condition) == ("haze_1.png", "haze")
    image = loaded.values["image"]
    assert image.shape == (1, 3, 24, 20) and image.dtype == np.float32 and image.flags.c_contiguous
    np.testing.assert_allclose(image[0, :, :21, :18], pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert loaded.values["crops"].shape == (1, 4, 3, 32, 32)
    upright = np.ascontiguousarray(pixels.transpose(1, 0, 2))  # as a camera stores an image of it, lying on its side
    turned = Image.Exif()
    turned[0x0112] = 5  # transposed
    Image.fromarray(upright).save(tmp_path / "rain_1.png", exif=turned)
    np.testing.assert_array_equal(sample_pixels(tmp_path / "rain_1.png", 64), image[0, :, :21, :18].transpose(1, 2, 0))
    assert sample_pixels(tmp_path / "haze_1.png", 16).shape == (16, 16, 3)
    (tmp_path / "haze_1.png").rename(tmp_path / "other.png")
    assert load_sample(tmp_path / "other.png", bundle(), ("rain", "haze")).condition == ""
    assert load_sample(tmp_path / "other.png", bundle(), ()).condition == ""
