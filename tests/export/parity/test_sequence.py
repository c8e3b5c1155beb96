"""The components of a path in order: inputs, fixed values and encoder outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.parity.runs import ParitySample
from export.parity.sequence import EncoderCache, component_inputs, fixed_values, run_in_order
from tests.export.parity.stand_ins import bundle, gated


def test_the_gate_keeps_a_share_that_is_given() -> None:
    seen: list[str] = []

    def run(component: str, values: Mapping[str, str]) -> Mapping[str, str]:
        seen.append(component)
        return {"share": "decided", "gains": "decided"} if component == "gate" else {"image": "restored"}

    found = run_in_order(("gate", "decoder"), {"image": "degraded", "share": "fixed"}, run)
    assert found == {"image": "restored", "share": "fixed", "gains": "decided"} and seen == ["gate", "decoder"]
    assert run_in_order(("gate",), {}, run)["share"] == "decided"


def test_values_that_a_condition_fixes() -> None:
    assert fixed_values(bundle(), "rain") == {}
    found = fixed_values(gated(bundle()), "rain")
    assert {name: value.shape for name, value in found.items()} == {
        "condition": (1, 32),
        "share": (1, 1),
        "gains": (1, 2),
    }
    assert not found["gains"].any() and found["share"].all()


def test_inputs_have_the_types_of_the_graphs() -> None:
    values = {name: np.zeros(1, np.float32) for name in ("latent_restored", "skip_0", "skip_1", "other")}
    for precision, dtype in (("fp16", "float16"), ("fp32", "float32"), (None, "float32")):
        inputs = component_inputs("decoder", values, bundle(), precision)
        assert inputs.keys() == {"latent_restored", "skip_0", "skip_1"}
        assert inputs["skip_0"].dtype == dtype and inputs["latent_restored"].dtype == np.float32


def test_the_encoder_cache_computes_once(sample: ParitySample, tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"latent": np.arange(3, dtype=np.float32)}

    cache = EncoderCache(tmp_path)
    first, second = cache.outputs(sample, compute), cache.outputs(sample, compute)
    assert len(calls) == 1 and np.array_equal(first["latent"], second["latent"])
