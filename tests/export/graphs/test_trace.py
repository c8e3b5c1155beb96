"""Traces of two components: names, dimensions, weights by reference, and results at other sizes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from dod.model.dod import DOD
from dod_runtime.bundle.safetensors import ALIGNMENT, read_tensors, tensor_spans
from export.errors import GraphError
from export.graphs.components import GRAPHS, meta_copy, neutral_modulation, plan
from export.graphs.fp16 import fp16_copy
from export.graphs.trace import OPSETS, _label, _plain, trace, weights_of, write_weights
from tests.dod.small_model import image, randomise, snr_db, tiny

onnxruntime = pytest.importorskip("onnxruntime")


@dataclass(frozen=True)
class Traced:
    path: Path
    weights: Path
    graph: onnx.GraphProto


def traced(model: DOD, graph: str, folder: Path) -> Traced:
    path, weights = folder / f"{graph}.onnx", folder / f"{GRAPHS[graph]}.safetensors"
    write_weights(model, model, GRAPHS[graph], weights)
    trace(model, graph, path, weights, OPSETS["fp32"])
    return Traced(path, weights, onnx.load(path, load_external_data=False).graph)


@pytest.fixture(scope="module")
def mfm(model: DOD, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(model, "mfm", tmp_path_factory.mktemp("mfm"))


@pytest.fixture(scope="module")
def encoder(model: DOD, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(model, "encoder", tmp_path_factory.mktemp("encoder"))


def interface(values: list[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    found = {}
    for value in values:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        found[value.name] = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return found


def run(traced: Traced, name: str, value: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(traced.path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy()})


def test_the_mfms_interface(mfm: Traced, model: DOD) -> None:
    size, rank = model.preset.mfm.crop_size, model.preset.lora.rank
    assert interface(list(mfm.graph.input)) == {"crops": ["batch", model.preset.mfm.crops, 3, size, size]}
    assert interface(list(mfm.graph.output)) == {
        "condition": ["batch", model.mfm.h_space.channels],
        "modulation": ["batch", len(model.layers), 2, rank],
    }


def test_the_encoders_interface(encoder: Traced) -> None:
    assert interface(list(encoder.graph.input)) == {"image": ["batch", 3, "height", "width"]}
    assert interface(list(encoder.graph.output)) == {
        "latent": ["batch", 4, "height/2", "width/2"],
        "skip_0": ["batch", 8, "height", "width"],
        "skip_1": ["batch", 8, "height/2", "width/2"],
    }


@pytest.mark.parametrize("component", ["mfm", "encoder"])
def test_initializers_point_at_the_tensors_of_their_name(
    component: str, model: DOD, request: pytest.FixtureRequest
) -> None:
    traced: Traced = request.getfixturevalue(component)
    spans, stored = tensor_spans(traced.weights), read_tensors(traced.weights)
    named = weights_of(model, component)
    assert stored.keys() == named.keys()
    assert all(np.array_equal(stored[name], tensor.detach().numpy()) for name, tensor in named.items())
    whole = [span.begin for span in spans.values() if (span.end - span.begin) % ALIGNMENT == 0]
    assert len(whole) > len(spans) / 4 and not any(begin % ALIGNMENT for begin in whole)
    external = {each.name: each for each in traced.graph.initializer if each.data_location == TensorProto.EXTERNAL}
    assert external.keys() <= spans.keys() and len(external) > 0.9 * len(spans)
    for name, initializer in external.items():
        data = {entry.key: entry.value for entry in initializer.external_data}
        span = spans[name]
        assert data["location"] == traced.weights.name, name
        assert (int(data["offset"]), int(data["length"])) == (span.begin, span.end - span.begin), name
        assert tuple(initializer.dims) == span.shape and initializer.data_type == TensorProto.FLOAT, name
    inline = [each for each in traced.graph.initializer if each.name not in external]
    assert sum(np.prod(each.dims) for each in inline) < 1000, "weights lie in the file, not in the graph"


@pytest.mark.parametrize("component", ["mfm", "encoder"])
def test_onnxs_full_check(component: str, request: pytest.FixtureRequest) -> None:
    traced: Traced = request.getfixturevalue(component)
    onnx.checker.check_model(str(traced.path), full_check=True)
    assert onnx.load(traced.path, load_external_data=False).opset_import[0].version == OPSETS["fp32"]


def test_the_mfm_computes_what_pytorch_does(mfm: Traced, model: DOD) -> None:
    size = model.preset.mfm.crop_size
    crops = image(12, size, size, seed=3).reshape(3, 4, 3, size, size)
    with torch.no_grad():
        expected = model.mfm(crops)
    for reference, found in zip(expected, run(mfm, "crops", crops), strict=True):
        assert snr_db(reference, found) > 100


@pytest.mark.parametrize("shape", [(1, 16, 28), (3, 20, 8)])
def test_the_encoder_computes_what_pytorch_does(encoder: Traced, model: DOD, shape: tuple[int, int, int]) -> None:
    pixels = image(*shape, seed=4)
    with torch.no_grad():
        latent, skips = model.encoder(pixels)
    for reference, found in zip((latent, *skips), run(encoder, "image", pixels), strict=True):
        assert found.shape == tuple(reference.shape) and snr_db(reference, found) > 100


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gate_and_postprocessed_decoder_compute_what_pytorch_does(precision: str, tmp_path: Path) -> None:
    post = {"filters": 3, "taps": 7, "window": 11, "width": 8}
    model = randomise(DOD.from_preset(tiny(postprocess=post)))
    assert model.gate is not None and model.postprocess is not None
    for network in (model.gate.sharpness, model.gate.passing):
        nn.init.normal_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
    like = fp16_copy(model, ()) if precision == "fp16" else model
    sessions = {}
    for graph in ("gate", "decoder"):
        path, weights = tmp_path / f"{graph}.onnx", tmp_path / f"{graph}.safetensors"
        write_weights(model, like, graph, weights)
        trace(like, graph, path, weights, OPSETS[precision])
        sessions[graph] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {each.type for each in sessions["gate"].get_inputs()} == {"tensor(float)"}, "decisions stay in float32"
    for batch, height, width in ((1, 64, 96), (2, 128, 64)):
        degraded = image(batch, height, width)
        with torch.no_grad():
            crops = model.crops(degraded)
            condition = model.mfm.condition(crops)
            decisions = model.gate(crops, condition)
            latent, skips = model.encoder(degraded)
            decoded = model.decoder(latent, skips)
            expected = model.postprocess(decoded, degraded, *decisions)
        found = sessions["gate"].run(None, {"crops": crops.numpy(), "condition": condition.numpy()})
        assert all(snr_db(a, b) >= 100 for a, b in zip(decisions, found, strict=True))
        values = {f"skip_{i}": skip.numpy() for i, skip in enumerate(skips)} | {"latent_restored": latent.numpy()}
        values |= {"degraded": degraded.numpy(), "share": decisions[0].numpy(), "gains": decisions[1].numpy()}
        dtypes = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
        inputs = {each.name: values[each.name].astype(dtypes[each.type]) for each in sessions["decoder"].get_inputs()}
        restored = sessions["decoder"].run(None, inputs)[0]
        assert snr_db(expected, restored) >= (100 if precision == "fp32" else 45) and snr_db(decoded, restored) < 40


def test_values_of_the_file_decide(encoder: Traced, model: DOD, tmp_path: Path) -> None:
    """Changed weights in the file change the result: no value was folded into the graph."""
    other = Traced(tmp_path / encoder.path.name, tmp_path / encoder.weights.name, encoder.graph)
    other.path.write_bytes(encoder.path.read_bytes())
    data = bytearray(encoder.weights.read_bytes())
    span = tensor_spans(encoder.weights)["encoder.conv_in.bias"]
    shifted = np.frombuffer(bytes(data[span.begin : span.end]), np.float32) + 1
    data[span.begin : span.end] = shifted.tobytes()
    other.weights.write_bytes(data)
    pixels = image(1, 16, 16)
    before, after = run(encoder, "image", pixels), run(other, "image", pixels)
    assert not np.allclose(before[0], after[0], atol=1e-3)


def test_both_unet_graphs_share_one_file(model: DOD) -> None:
    stored = weights_of(model, "unet")
    merged = {_plain(name) for name, _ in plan(model, "unet_merged").module.named_parameters()}
    dynamic = {_plain(name) for name, _ in plan(model, "unet_dynamic").module.named_parameters()}
    assert merged | dynamic <= stored.keys()
    prompted = {name for name in dynamic if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert {name for name in stored if ".lora_" in name} | prompted == dynamic - merged
    base = dict(model.unet.unet.named_parameters())
    for name, tensor in stored.items():
        layered = name.rpartition(".")
        original = base.get(f"{layered[0]}.base_layer.{layered[2]}")
        if original is not None:
            assert torch.equal(tensor, original), f"{name}: with neutral modulation the base's own values"
    assert not neutral_modulation(model).any()


def test_weights_are_written_in_the_dtypes_of_another(model: DOD, tmp_path: Path) -> None:
    fp16 = fp16_copy(meta_copy(model), ("unet.unet.conv_out",))
    facts = write_weights(model, fp16, "unet", tmp_path / "unet.safetensors")
    assert facts == {"sha256": hashlib.sha256((tmp_path / "unet.safetensors").read_bytes()).hexdigest()}
    stored = read_tensors(tmp_path / "unet.safetensors")
    assert stored["conv_out.weight"].dtype == np.float32 and stored["conv_in.weight"].dtype == np.float16
    expected = weights_of(fp16_copy(model, ("unet.unet.conv_out",)), "unet")
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        # derived tensors are computed before the weights are rounded
        tolerance = 2e-3 if name.endswith(".output") else 0
        np.testing.assert_allclose(stored[name], value.detach().numpy(), rtol=0, atol=tolerance, err_msg=name)


def test_a_refused_trace_is_a_graph_error(model: DOD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("long story\nno operator for this")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(GraphError, match="mfm.*no operator for this"):
        trace(model, "mfm", tmp_path / "mfm.onnx", tmp_path / "mfm.safetensors", 20)
    assert not (tmp_path / "mfm.onnx").exists()


@pytest.mark.parametrize(
    ("size", "known", "label", "expected"),
    [
        (192, 192, "height", "height"),
        (24, 192, "height", "height/8"),
        (96, 192, "width", "width/2"),
        (192, 24, "height/8", "height"),
        (24, 24, "height/8", "height/8"),
        (48, 24, "width/8", "width/4"),
        (2, 2, "batch", "batch"),
    ],
)
def test_label(size: int, known: int, label: str, expected: str) -> None:
    assert _label(size, known, label) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet.mid_block.proj.base_layer.weight", "mid_block.proj.weight"),
        ("unet.mid_block.proj.lora_A.default.weight", "mid_block.proj.lora_A.weight"),
        ("part.encoder.conv_in.bias", "encoder.conv_in.bias"),
        ("network.out.weight", "network.out.weight"),
    ],
)
def test_plain_names(name: str, expected: str) -> None:
    assert _plain(name) == expected
