"""Condition files: the chosen conditions, their values, and a merge that equals the model's own."""

from __future__ import annotations

import copy
import stat
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dod.model import clora
from dod.model.dod import DOD, OneStepUNet
from dod_runtime.bundle.safetensors import tensor_spans
from dod_runtime.bundle.schema import MergeEntry
from dod_runtime.errors import UsageError
from dod_runtime.files import current_umask
from export.graphs.condition_files import (
    chosen_conditions,
    engine_conditions,
    merge_entries,
    modulation_of,
    write_condition,
    write_merged_graph,
)
from export.graphs.simplify import fold_upsampling, simplify_merged
from export.graphs.trace import write_weights


def test_chosen_conditions(model: DOD) -> None:
    assert chosen_conditions(model, None) == chosen_conditions(model, []) == ("rain", "haze")
    assert chosen_conditions(model, ["haze", "rain", "haze"]) == ("haze", "rain")
    with pytest.raises(UsageError, match="'rian'.*'rain'"):
        chosen_conditions(model, ["haze", "rian"])


def test_engine_conditions() -> None:
    assert engine_conditions(("rain", "haze"), None) == ("rain", "haze")
    assert engine_conditions(("rain", "haze"), []) == () and engine_conditions(("rain", "haze"), ["haze"]) == ("haze",)
    with pytest.raises(UsageError, match="'noise'"):
        engine_conditions(("rain", "haze"), ["noise"])


def test_a_checkpoint_without_prototypes(model: DOD) -> None:
    bare = copy.copy(model)
    bare.prototypes = {}
    assert chosen_conditions(bare, None) == ()
    with pytest.raises(UsageError, match="'rain'.*no prototypes.*dod-train calibrate"):
        chosen_conditions(bare, ["rain"])


def test_the_file_of_a_condition(model: DOD, tmp_path: Path) -> None:
    write_condition(model, "rain", tmp_path / "rain.safetensors")
    stored = load_file(tmp_path / "rain.safetensors")
    assert stored.keys() == {"modulation"} and stored["modulation"].dtype == np.float32
    assert stored["modulation"].shape == (len(model.layers), 2, model.preset.lora.rank)
    with torch.no_grad():
        expected = model.mfm.network(model.prototypes["rain"][None])[0].numpy()
    np.testing.assert_allclose(stored["modulation"], expected, atol=1e-6)
    mode = stat.S_IMODE((tmp_path / "rain.safetensors").stat().st_mode)
    assert mode == 0o666 & ~current_umask(), "a bundle may be served by another user than its builder"
    assert not np.allclose(expected, modulation_of(model, "haze"))


@pytest.fixture
def folded(model: DOD) -> DOD:
    """The model with its transposed convolutions."""
    model = copy.deepcopy(model)
    fold_upsampling(model.unet)
    return model


@pytest.mark.parametrize("fixture", ["model", "folded"])
def test_merge_entries_name_tensors_of_the_weights(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: DOD = request.getfixturevalue(fixture)
    write_weights(model, model, "unet", tmp_path / "unet.safetensors")
    spans = tensor_spans(tmp_path / "unet.safetensors")
    entries = merge_entries(model)
    assert [entry["index"] for entry in entries] == list(range(len(model.layers)))
    assert [f"unet.{entry['layer']}" for entry in entries] == model.layers
    rank = model.preset.lora.rank
    for entry in entries:
        weight, a, b = (spans[str(entry[key])] for key in ("weight", "A", "B"))
        name = str(entry["layer"])
        assert entry.get("transposed", False) == (fixture == "folded" and "upsamplers" in name)
        first, last = (1, 0) if "transposed" in entry else (0, 1)
        assert a.shape[first] == b.shape[1] == rank and weight.shape[first] == b.shape[0]
        assert a.shape[last] == weight.shape[last] and a.shape[2:] == weight.shape[2:]
        assert (entry["bias"] is None) == name.endswith(("to_k", "to_v"))
        assert entry["bias"] is None or spans[str(entry["bias"])].shape == b.shape[:1]
        assert ("bias_into" in entry) == name.endswith("to_v") and ("output" in entry) == (
            "attn2" in name and entry["bias"] is None
        )
        if "output" in entry:
            assert spans[str(entry["output"])].shape == (*spans[str(entry["input"])].shape[:2], b.shape[0])
        assert entry["scale"] == model.preset.lora.alpha / rank


@pytest.mark.parametrize("fixture", ["model", "folded"])
def test_the_merged_weights_are_the_models_own(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: DOD = request.getfixturevalue(fixture)
    (tmp_path / "out").mkdir()
    (tmp_path / "unet_merged.onnx").write_bytes(b"the graph")
    write_weights(model, model, "unet", tmp_path / "unet.safetensors")
    modulation = modulation_of(model, "haze")
    arguments = tmp_path / "unet_merged.onnx", tmp_path / "unet.safetensors", merge_entries(model), modulation
    path = write_merged_graph(*arguments, tmp_path / "out")
    assert path == tmp_path / "out" / "unet_merged.onnx" and path.read_bytes() == b"the graph"
    assert tensor_spans(path.with_name("unet.safetensors")) == tensor_spans(tmp_path / "unet.safetensors")
    unet = cast(OneStepUNet, clora.merged_copy(model.unet, torch.from_numpy(modulation)))
    simplify_merged(unet)
    merged, plain = load_file(path.with_name("unet.safetensors")), load_file(tmp_path / "unet.safetensors")
    for name, value in unet.unet.state_dict().items():
        np.testing.assert_allclose(merged[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    changed = {name for name in plain if not np.array_equal(plain[name], merged[name])}
    entries = [MergeEntry(**entry) for entry in merge_entries(model)]
    assert changed == {name for entry in entries for name in entry.changes}
