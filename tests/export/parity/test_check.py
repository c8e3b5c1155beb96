"""Parity checks step by step: an equal model passes, a wrong weight fails where it is, nothing runs twice."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dod.model.dod import DOD
from export.cache import BuildCache
from export.graphs.fp16 import fp16_copy
from export.parity import check
from export.parity.check import check_count
from export.parity.reference import TorchPipeline
from export.parity.runs import ParitySample, Values, load_sample, parity_steps, paths_of
from export.parity.sequence import EncoderCache, run_pipeline
from export.steps.simplification import COSTS, Simplification, read_results
from tests.dod.small_model import image
from tests.export.parity.stand_ins import Substitute, bundle, checks_of, gated, passing_model, results_of

Change = Callable[[DOD], torch.Tensor]
SAME = 1e-6
"""Largest difference between two runs of the same computation."""


def test_the_same_model_passes(model: DOD, sample: ParitySample, substitute: Substitute) -> None:
    substitute(copy.deepcopy(model))
    results = results_of(model, bundle(), sample)
    assert all(each.passed for each in results)
    found = {(each.path, each.component, each.step) for each in results}
    dynamic = ("mfm", "encoder", "unet_dynamic", "decoder")
    assert found == {
        *(("auto", component, "onnx fp32") for component in ("pipeline", *dynamic)),
        *(("rain", component, "onnx fp32") for component in ("pipeline", "unet_merged")),
        ("rain", "pipeline", "merged"),
        ("rain", "layer", "merged"),
    }
    assert all(each.max_abs <= SAME for each in results if each.step == "onnx fp32")
    merged = [each for each in results if each.step == "merged"]
    assert all(each.max_abs > 0 for each in merged), "branches and merged weights, not one compared with itself"


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
def test_one_wrong_weight_fails_the_pipeline_and_names_the_component(
    model: DOD, sample: ParitySample, substitute: Substitute, change: Change, component: str
) -> None:
    substitute(wrong_weight(model, change))
    results = {(each.path, each.component): each for each in results_of(model, bundle(), sample)}
    assert not results["auto", "pipeline"].passed
    parts = {name: each.max_abs for (path, name), each in results.items() if path == "auto" and name != "pipeline"}
    assert {name for name, max_abs in parts.items() if max_abs > SAME} == {component}, "each has the reference's inputs"


def test_a_wrong_unet_fails_where_the_image_passes_the_model(
    model: DOD, sample: ParitySample, substitute: Substitute
) -> None:
    passing = passing_model(model)
    substitute(wrong_weight(passing, lambda m: m.unet.unet.conv_in.weight.view(-1)[5].add_(0.05)))
    results = [each for each in results_of(passing, gated(bundle()), sample) if each.step == "onnx fp32"]
    assert {each.component for each in results if not each.passed} == {"unet_dynamic", "unet_merged"}
    assert any(each.component == "gate" for each in results), "the gate is compared by itself too"


def test_a_wrong_merge_fails(
    model: DOD, sample: ParitySample, substitute: Substitute, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge: Any = check.clora.merge

    def without_beta(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        *others, beta, transposed = arguments
        return merge(*others, torch.zeros_like(beta), transposed)

    monkeypatch.setattr(check.clora, "merge", without_beta)
    substitute(model)
    results = {(each.component, each.step): each for each in results_of(model, bundle(), sample)}
    assert not results["layer", "merged"].passed and not results["pipeline", "merged"].passed


def test_fp16_is_measured_by_pytorch_too(model: DOD, sample: ParitySample, substitute: Substitute) -> None:
    fp16 = fp16_copy(model)
    substitute(model, fp16)
    results = results_of(model, bundle(("fp32", "fp16")), sample)
    found = {each.step: each for each in results if each.component == "pipeline" and each.path == "auto"}
    assert found.keys() == {"onnx fp32", "torch fp16", "onnx fp16"}
    assert found["onnx fp32"].max_abs <= SAME
    assert found["onnx fp16"].max_abs == pytest.approx(found["torch fp16"].max_abs, rel=1e-3)
    assert "PyTorch" in found["torch fp16"].measured_with and "overflow" in found["onnx fp16"].measured_with
    assert 0 < found["torch fp16"].max_abs < 0.2


def test_overflow_in_fp16_fails(model: DOD, sample: ParitySample, substitute: Substitute) -> None:
    loud = wrong_weight(model, lambda m: m.unet.unet.conv_in.weight.fill_(6e4))  # finite weights, overflowing sums
    fp16 = fp16_copy(loud)
    assert all(parameter.isfinite().all() for parameter in fp16.parameters())
    substitute(loud, fp16)
    results = results_of(loud, bundle(("fp16",)), sample)
    wanted = ("pipeline", "torch fp16", "auto")
    found = next(each for each in results if (each.component, each.step, each.path) == wanted)
    assert not found.passed and not math.isfinite(found.snr_db)


def test_components_are_isolated_once_on_the_first_sample(
    model: DOD, sample: ParitySample, substitute: Substitute
) -> None:
    substitute(model)
    second = ParitySample("clean.png", "", {**sample.values, "image": image(1, 32, 16, seed=2).numpy()})
    checks = checks_of(model, bundle(), sample, second)
    first = [result for check in checks if check.sample == sample.name for result in check.results]
    others = [result for check in checks if check.sample == second.name for result in check.results]
    isolated = [each.component for each in first if each.component not in ("pipeline", "layer")]
    assert isolated == ["mfm", "encoder", "unet_dynamic", "decoder", "unet_merged"]
    assert len(first) == 4 + len(isolated)
    assert [(each.path, each.component) for each in others] == [("auto", "pipeline")]
    assert len(checks) == check_count(bundle(), paths_of(bundle(), [sample, second]))
    restored = next(check.restored for check in reversed(checks) if check.sample == second.name)
    with torch.no_grad():
        crops = torch.from_numpy(second.values["crops"])
        expected = model(torch.from_numpy(second.values["image"]), model.mfm(crops)[1])
    np.testing.assert_allclose(restored, expected.numpy(), atol=1e-5)


def test_the_encoder_runs_once_per_sample_for_all_paths(
    model: DOD, sample: ParitySample, substitute: Substitute, monkeypatch: pytest.MonkeyPatch
) -> None:
    substitute(model)
    runs: Counter[str] = Counter()
    original = TorchPipeline.run

    def counted(self: TorchPipeline, component: str, inputs: Values, condition: str | None = None) -> dict:
        runs[component] += 1
        return original(self, component, inputs, condition)

    monkeypatch.setattr(TorchPipeline, "run", counted)
    checks = checks_of(model, bundle(), sample)
    assert {check.path for check in checks} == {"auto", "rain"}
    runners = 1 + len(parity_steps(bundle()))  # with the reference
    assert runs["encoder"] == runners and runs["unet_merged"] > runners


def test_computed_values_are_used_only_for_their_own_image(
    model: DOD, sample: ParitySample, substitute: Substitute, tmp_path: Path
) -> None:
    substitute(model)
    run = paths_of(bundle(), [sample])["auto"][0]
    computed = run_pipeline(TorchPipeline(model), run, bundle(), EncoderCache(tmp_path))
    marked = {**computed, "image": computed["image"] + 0.5}
    second = ParitySample("clean.png", "", {**sample.values, "image": sample.values["image"] * 0.9})
    checks = checks_of(model, bundle(), sample, second, computed=marked)
    found = {check.sample: check.restored for check in checks if (check.step, check.path) == ("merged", "auto")}
    assert np.array_equal(found[sample.name], marked["image"])
    with torch.no_grad():
        crops, pixels = (torch.from_numpy(second.values[name]) for name in ("crops", "image"))
        expected = model(pixels, model.mfm(crops)[1]).numpy()
    np.testing.assert_allclose(found[second.name], expected, atol=1e-5)


def test_the_simplify_step_computes_the_values_of_the_reference(model: DOD, tmp_path: Path) -> None:
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
    expected = run_pipeline(TorchPipeline(simplified), run, bundle(), EncoderCache(tmp_path))
    assert check._is_of(values, run) and values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, atol=1e-5, err_msg=name)
