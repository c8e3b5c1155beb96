"""The checks that a manifest must pass: each entry that is not valid is named in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import COMPONENTS, GATE, SCHEMA, Manifest
from dod_runtime.errors import BundleError
from tests.runtime.toy_bundle import write_toy_bundle

Keys = tuple[str | int, ...]


@pytest.fixture(scope="module")
def valid(toy: Bundle) -> dict[str, Any]:
    """JSON of a valid manifest."""
    return json.loads((toy.folder / "bundle.json").read_text())


def changed(data: Any, keys: Keys, value: Any) -> Any:
    """Return a copy of the data with another value at `keys`."""
    data = copy.deepcopy(data)
    parent = data
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = value
    return data


def places(data: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Yield the keys of every value of JSON data except the outermost."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield (*keys, key)
        yield from places(value, (*keys, key))


def test_parse(toy: Bundle) -> None:
    manifest = toy.manifest
    assert manifest.name == "toy" and set(manifest.components) == set(COMPONENTS)
    assert manifest.profile.size == (32, 32, 128) and manifest.crops.count == 4
    outputs = manifest.components["encoder"].outputs
    assert [spec.dtype_in("fp16") for spec in outputs] == ["float32"] + ["float16"] * 4
    assert outputs[1].dtype_in("fp32") == "float32"
    assert manifest.merge[1].A == "proj.lora_A.weight" and manifest.merge[1].scale == 0.5
    assert manifest.precisions["fp16"].fp32_modules == ("mfm",) and not manifest.gated and manifest.filters == 0


def test_newer_and_older_schema(valid: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=rf"schema {SCHEMA + 1}.* {SCHEMA} .*update dod-runtime"):
        Manifest.parse(valid | {"schema": SCHEMA + 1})
    with pytest.raises(BundleError, match=rf"schema 0.* {SCHEMA} .*dod-export build"):
        Manifest.parse({"schema": 0, "entries": "of another schema"})


REQUIRED = [
    *("schema", "name", "size_multiple", "profile", "crops", "components", "precisions", "merge", "conditions"),
    *("targets", "files", "profile.batch", "crops.size", "components.decoder", "components.mfm.inputs"),
    *("precisions.fp32.onnx", "precisions.fp32.weights.encoder", "targets.onnxruntime.precisions"),
]


@pytest.mark.parametrize("place", REQUIRED)
def test_missing_entries_are_named(place: str, valid: dict[str, Any]) -> None:
    data = copy.deepcopy(valid)
    *parents, last = place.split(".")
    parent = data
    for key in parents:
        parent = parent[key]
    del parent[last]
    with pytest.raises(BundleError, match=rf"{place} is missing.*dod-export build"):
        Manifest.parse(data)


@pytest.mark.parametrize("key", ["layer", "index", "scale", "weight", "bias", "A", "B"])
def test_missing_keys_of_merge_entries_are_named(key: str, valid: dict[str, Any]) -> None:
    data = copy.deepcopy(valid)
    del data["merge"][1][key]
    with pytest.raises(BundleError, match=rf"merge\[1\]\.{key} is missing"):
        Manifest.parse(data)


INVALID: list[tuple[Keys, Any, str]] = [
    (("schema",), "5", "schema is '5'"),
    (("name",), 3, "name is 3"),
    (("size_multiple",), 0, "size_multiple is 0"),
    (("size_multiple",), True, "size_multiple is True"),
    (("profile", "size"), [256, 128, 512], r"profile\.size is \[256, 128, 512\]"),
    (("profile", "size"), [128, 256], r"profile\.size is \[128, 256\]"),
    (("profile", "size"), [0, 256, 512], r"profile\.size\[0\] is 0"),
    (("profile", "batch"), [2, 2, 4], r"profile\.batch"),
    (("crops", "count"), 3, r"crops\.count is 3"),
    (("crops", "size"), 16.0, r"crops\.size is 16\.0"),
    (("components",), [], r"components is \[\]"),
    (("components", "mfm"), None, r"components\.mfm is None"),
    (("components", "mfm", "inputs"), {}, r"components\.mfm\.inputs is {}"),
    (("components", "mfm", "inputs", 0, "name"), 3, r"components\.mfm\.inputs\[0\]\.name is 3"),
    (("components", "mfm", "inputs", 0, "shape", 1), 0, r"components\.mfm\.inputs\[0\]\.shape\[1\] is 0"),
    (("components", "encoder", "outputs", 1, "dtype", "fp16"), 3, r"encoder\.outputs\[1\]\.dtype\.fp16 is 3"),
    (("components", "encoder", "outputs", 1, "dtype"), [], r"encoder\.outputs\[1\]\.dtype is \[\]"),
    (("merge",), {}, "merge is {}"),
    (("merge", 0, "index"), -1, r"merge\[0\]\.index is -1"),
    (("merge", 0, "scale"), "1", r"merge\[0\]\.scale is '1'"),
    (("merge", 0, "bias"), 0, r"merge\[0\]\.bias is 0"),
    (("merge", 0, "transposed"), 1, r"merge\[0\]\.transposed is 1"),
    (("conditions", "haze"), "../../etc/passwd", r"conditions\.haze is '../../etc/passwd'"),
    (("conditions", "haze"), "/etc/passwd", r"conditions\.haze is '/etc/passwd'"),
    (("conditions", "haze"), "c:\\haze", r"conditions\.haze is 'c:"),
    (("conditions", "haze"), "conditions/none", r"conditions\.haze names conditions/none"),
    (("conditions", "haze"), None, r"conditions\.haze is None"),
    (("conditions", "auto"), "conditions/haze.safetensors", r"conditions\.auto"),
    (("precisions", "fp32", "onnx"), {}, r"precisions\.fp32\.onnx\.mfm"),
    (("precisions", "fp32", "onnx", "mfm"), "none.onnx", r"precisions\.fp32\.onnx\.mfm names none\.onnx"),
    (("precisions", "fp32", "fp32_modules"), "mfm", r"precisions\.fp32\.fp32_modules is 'mfm'"),
    (("targets", "onnxruntime", "precisions"), ["int8"], r"targets\.onnxruntime\.precisions has int8"),
    (("targets", "openvino"), {"precisions": ["fp32", "bf8"]}, r"targets\.openvino\.precisions has bf8"),
    (
        ("targets", "tensorrt"),
        {"precisions": ["fp16"], "engines": {"mfm": "e"}},
        r"targets\.tensorrt\.engines\.mfm .*e",
    ),
    (("targets", "onnxruntime", "version"), 1, r"targets\.onnxruntime\.version is 1"),
    (("targets", "onnxruntime", "compute_capabilities"), [8.9], r"onnxruntime\.compute_capabilities\[0\] is 8\.9"),
    (
        ("files", "conditions/haze.safetensors", "sha256"),
        "abc",
        r"files\.conditions/haze\.safetensors\.sha256 is 'abc'",
    ),
    (("files", "conditions/haze.safetensors", "sha256"), "0" * 64 + "\n", r"conditions/haze\.safetensors\.sha256"),
    (("files", "conditions/haze.safetensors", "bytes"), "1", r"files\.conditions/haze\.safetensors\.bytes is '1'"),
    (("files", ".."), {"bytes": 1, "sha256": "0" * 64}, r"files has '\.\.'"),
    (("tools", "onnx"), 1, r"tools\.onnx is 1"),
    (("model",), [], r"model is \[\]"),
    (("parity",), [1], r"parity\[0\] is 1"),
]


@pytest.mark.parametrize(("keys", "value", "message"), INVALID)
def test_invalid_entries_are_named(keys: Keys, value: Any, message: str, valid: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.parse(changed(valid, keys, value))
    assert "\n" not in str(caught.value) and "dod-export build" in str(caught.value)


def test_unknown_keys_are_ignored(valid: dict[str, Any]) -> None:
    data = changed(valid, ("later",), {"x": 1})
    data = changed(data, ("merge", 0, "later"), 1)
    assert Manifest.parse(data) == Manifest.parse(valid)


TEXT = st.text(st.characters(exclude_characters="."), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)


@given(data=st.data(), value=JSON)
def test_any_damaged_entry_is_read_or_named(data: st.DataObject, value: Any, valid: dict[str, Any]) -> None:
    keys = data.draw(st.sampled_from(sorted(places(valid), key=str)))
    try:
        Manifest.parse(changed(valid, keys, value))
    except BundleError as error:
        message = str(error)
        assert "\n" not in message and "..." not in message.partition(" is ")[0]
        assert str(keys[0]) in message


@given(value=JSON)
def test_any_json_is_refused(value: Any) -> None:
    with pytest.raises(BundleError):
        Manifest.parse(value)


def test_gate_and_decoder_must_match(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "gated", shares={}, precisions=["fp32"])
    valid = json.loads((folder / "bundle.json").read_text())
    assert Manifest.parse(valid).gated
    outputs = valid["components"][GATE]["outputs"]
    decoder = [spec for spec in valid["components"]["decoder"]["inputs"] if spec["name"] != "degraded"]
    for keys, value in (
        (("components", GATE, "outputs"), outputs[::-1]),
        (("components", GATE, "outputs", 1, "shape", 1), "batch"),
        (("components", "decoder", "inputs"), decoder),
        (("precisions", "fp32", "onnx"), {k: v for k, v in valid["precisions"]["fp32"]["onnx"].items() if k != GATE}),
    ):
        with pytest.raises(BundleError, match=GATE):
            Manifest.parse(changed(valid, keys, value))
