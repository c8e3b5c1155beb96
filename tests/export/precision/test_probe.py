"""The probe sees every intermediate result and changes none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dod.model.dod import DOD
from export.precision.calibration import load_image, restore
from export.precision.probe import Probe, sample_positions
from export.precision.ranges import ValueRange, measure_ranges
from tests.dod.small_model import normal


def test_results_between_modules_are_seen(model: DOD, paths: list[Path]) -> None:
    ranges: dict[str, ValueRange] = {}
    image = load_image(paths[1], model)
    assert image.image.shape == (1, 3, 32, 36)
    (reference,) = measure_ranges(model, [image], ranges)
    np.testing.assert_allclose(reference.output.image, restore(model, image).image, atol=1e-6)
    for name in ("decoder.detail.0 mul", "unet.unet.mid_block.attentions.0.transformer_blocks.0.attn1 scores"):
        assert name in ranges, "computed in no module of its own"
    assert not model._forward_hooks and not model.unet.unet.conv_in._forward_pre_hooks


def test_attention_scores(model: DOD) -> None:
    query, key = normal(1, 2, 300, 4), normal(1, 2, 7, 4, seed=1)
    seen: list[torch.Tensor] = []
    with Probe(model, lambda operation, result: seen.append(result), scores=True) as probe:
        probe._stack.append("unet")
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    scores = torch.cat(seen[:-1], dim=2)
    assert torch.allclose(scores, query @ key.transpose(2, 3) / 2, atol=1e-6) and len(seen) == 3


def test_sampled_positions_are_always_the_same() -> None:
    sample_positions.cache_clear()
    first = sample_positions(10_000, 50).clone()
    sample_positions.cache_clear()
    assert torch.equal(sample_positions(10_000, 50), first) and first.max() < 10_000 and len(first) == 50
