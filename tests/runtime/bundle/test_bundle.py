"""Bundles: whole, spoiled in every way, and written."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dod_runtime.bundle import bundle as bundle_module
from dod_runtime.bundle.bundle import Bundle, hash_file
from dod_runtime.bundle.schema import COMPONENTS, SCHEMA
from dod_runtime.bundle.write import write_bundle
from dod_runtime.errors import BundleError, UsageError
from tests.runtime.toy_bundle import FILTERS, toy_modulation, toy_prototype, toy_weights, write_toy_bundle


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    data = json.loads((folder / "bundle.json").read_text())
    change(data)
    (folder / "bundle.json").write_text(json.dumps(data))
    return folder


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def wait(condition: Callable[[], object]) -> None:
    """Until something is so, for ten seconds at most."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it is not so after ten seconds")


def test_open_reads_the_manifest(toy: Bundle) -> None:
    manifest = toy.manifest
    assert manifest.name == "toy" and set(manifest.components) == set(COMPONENTS)
    assert manifest.profile.size == (32, 32, 128) and manifest.crops.count == 4
    assert [spec.dtype_in("fp16") for spec in manifest.components["encoder"].outputs] == ["float32"] + ["float16"] * 4
    assert manifest.components["encoder"].outputs[1].dtype("fp32") == "float32"
    assert manifest.merge[1].A == "proj.lora_A.weight" and manifest.merge[1].scale == 0.5
    toy.verify()
    assert "toy" in repr(toy)


def test_every_file_is_recorded(toy: Bundle) -> None:
    on_disk = {path.relative_to(toy.folder).as_posix() for path in toy.folder.rglob("*") if path.is_file()}
    assert on_disk - {"bundle.json", "report.md"} == set(toy.manifest.files)
    for name, record in toy.manifest.files.items():
        assert record.sha256 == hash_file(toy.folder / name) and record.bytes == (toy.folder / name).stat().st_size


def test_modulation_is_the_prototypes(toy: Bundle) -> None:
    expected = toy_modulation(toy_prototype("haze"), toy_weights(1)["mfm"])
    np.testing.assert_array_equal(toy.modulation("haze"), expected)
    with pytest.raises(UsageError, match="did you mean 'haze'"):
        toy.modulation("hase")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such bundle: .*build it with: python export/build_engines.py"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xff", b"[]", b"3", b"{}", b'{"schema": "1"}'])
def test_manifest_that_is_none(content: bytes, copy: Path) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(copy)


def test_newer_and_older_schema(copy: Path) -> None:
    with pytest.raises(BundleError, match=rf"schema {SCHEMA + 1}, newer than schema {SCHEMA} .*: update dod-runtime"):
        Bundle.open(edited(copy, lambda data: data.update(schema=SCHEMA + 1)))
    with pytest.raises(BundleError, match=r"schema 0, older .*: rebuild"):
        Bundle.open(edited(copy, lambda data: data.update(schema=0)))


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "onnx/fp32/decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks the file onnx/fp32/decoder\.onnx; rebuild with: python export/"):
        Bundle.open(copy)


def test_cut_file_is_found_at_once(copy: Path) -> None:
    path = copy / "onnx/fp32/unet.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"unet\.safetensors has \d+ bytes, expected \d+"):
        Bundle.open(copy)


def test_changed_byte_is_found_at_first_use(copy: Path) -> None:
    flip(copy / "onnx/fp32/encoder.onnx")
    bundle = Bundle.open(copy)
    bundle.path("onnx/fp32/decoder.onnx")
    message = r"encoder\.onnx was changed: expected SHA-256 \w{64}, found \w{64}; rebuild with: python export/"
    with pytest.raises(BundleError, match=message):
        bundle.path("onnx/fp32/encoder.onnx")
    with pytest.raises(BundleError, match="was changed"):
        bundle.verify()


def test_what_is_hashed_ahead_is_hashed_once_and_found_as_well(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, hash_file = [], bundle_module.hash_file

    def slowly(path: Path) -> str:
        hashed.append(path.name)
        time.sleep(0.1)
        return hash_file(path)

    monkeypatch.setattr(bundle_module, "hash_file", slowly)
    bundle, name = Bundle.open(copy), "onnx/fp32/decoder.onnx"
    bundle.hash_ahead(name)
    wait(lambda: hashed)
    assert bundle.path(name) == copy / name
    assert sorted(hashed) == sorted({"decoder.onnx", *(each.rpartition("/")[2] for each in bundle._weights_of(name))})
    flip(copy / "onnx/fp32/encoder.onnx")
    hashed.clear()
    bundle.hash_ahead("onnx/fp32/encoder.onnx")
    wait(lambda: not [each for each in threading.enumerate() if each.name == "dod-hashing"])
    assert hashed == ["encoder.onnx"]
    with pytest.raises(BundleError, match=r"encoder\.onnx was changed"):
        bundle.path("onnx/fp32/encoder.onnx")


def test_a_graph_answers_for_its_weights(copy: Path) -> None:
    flip(copy / "onnx/fp32/unet.safetensors")
    bundle = Bundle.open(copy)
    bundle.path("onnx/fp32/encoder.onnx")
    for component in ("unet_dynamic", "unet_merged"):
        with pytest.raises(BundleError, match=r"unet\.safetensors was changed"):
            bundle.path(f"onnx/fp32/{component}.onnx")


@pytest.mark.parametrize("place", [20, -1], ids=["header", "weights"])
def test_nothing_is_merged_of_weights_that_were_changed(copy: Path, place: int) -> None:
    path = copy / "onnx/fp32/unet.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    bundle = Bundle.open(copy)
    with pytest.raises(BundleError, match=r"unet\.safetensors was changed"):
        bundle.merged(bundle.manifest.precisions["fp32"], "haze")


def test_a_file_that_cannot_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> str:
        raise OSError(5, "Input/output error")

    bundle = Bundle.open(copy)
    monkeypatch.setattr(bundle_module, "hash_file", broken)
    bundle.hash_ahead("onnx/fp32/encoder.onnx")  # a thread that said so by itself would fail this test
    with pytest.raises(BundleError, match=r"cannot read .*encoder\.onnx: Input/output error"):
        bundle.path("onnx/fp32/encoder.onnx")


def test_unknown_file(toy: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no file nothing.onnx"):
        toy.path("nothing.onnx")


def test_modulation_of_the_wrong_shape(copy: Path) -> None:
    edited(copy, lambda data: data["components"]["mfm"]["outputs"][1].update(shape=["batch", 9, 2, 4]))
    with pytest.raises(BundleError, match=r"must hold 'modulation' as float32 \[9, 2, 4\], found float32 \[2, 2, 4\]"):
        Bundle.open(copy).modulation("haze")


def test_a_condition_of_a_model_with_a_gate_holds_its_prototype_and_share(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy_bundle(tmp_path / "gated", shares={"haze": 0.0, "noise": 0.5}))
    values = bundle.condition_tensors("noise")
    np.testing.assert_array_equal(values["condition"], toy_prototype("noise"))
    assert values["share"].tolist() == [0.5] and bundle.manifest.gated and bundle.manifest.filters == FILTERS
    for share in (None, np.array([2], np.float32)):
        tensors = {**values, "share": share} if share is not None else {"modulation": values["modulation"]}
        path = tmp_path / "gated" / bundle.manifest.conditions["noise"]
        save_file({key: np.array(value) for key, value in tensors.items()}, path)
        edited(tmp_path / "gated", lambda data, path=path: record(data, path, tmp_path / "gated"))
        with pytest.raises(BundleError, match="share|condition"):
            Bundle.open(tmp_path / "gated").condition_tensors("noise")


def record(data: dict[str, Any], path: Path, folder: Path) -> None:
    name = path.relative_to(folder).as_posix()
    data["files"][name] |= {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def test_a_gate_that_the_decoder_does_not_take_is_refused(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "gated", shares={})
    edited(folder, lambda data: data["components"]["gate"]["outputs"].reverse())
    with pytest.raises(BundleError, match=r"components\.gate"):
        Bundle.open(folder)


REQUIRED = ["schema", "name", "size_multiple", "profile", "crops", "components", "precisions", "merge", "conditions"]


@pytest.mark.parametrize("key", [*REQUIRED, "targets", "files"])
def test_missing_key_is_named(key: str, copy: Path) -> None:
    with pytest.raises(BundleError, match=f"bundle.json is not valid: {key} is missing"):
        Bundle.open(edited(copy, lambda data: data.pop(key)))


def at(data: Any, *keys: Any, value: Any) -> None:
    for key in keys[:-1]:
        data = data[key]
    data[keys[-1]] = value


WRONG = [
    (("size_multiple",), 0, "size_multiple is 0"),
    (("size_multiple",), True, "size_multiple is True"),
    (("profile", "size"), [256, 128, 512], "three rising numbers"),
    (("profile", "batch"), [2, 2, 4], "must begin with 1"),
    (("crops", "count"), 3, "not a square number"),
    (("components", "mfm", "inputs", 0, "name"), 3, r"components.mfm.inputs\[0\].name is 3, not a text"),
    (("components", "mfm", "inputs"), {}, "components.mfm.inputs is {}, not a list"),
    (("merge", 0, "index"), -1, r"merge\[0\].index is -1"),
    (("merge", 0, "scale"), "1", "not a number"),
    (("merge", 0, "transposed"), 1, "is 1, not true or false"),
    (("conditions", "haze"), "../../etc/passwd", "not a path inside the bundle"),
    (("conditions", "haze"), "/etc/passwd", "not a path inside the bundle"),
    (("conditions", "haze"), "c:\\haze", "not a path inside the bundle"),
    (("conditions", "haze"), "conditions/none", "not among the bundle's files"),
    (("conditions", "auto"), "conditions/haze.safetensors", "conditions.auto is a reserved name"),
    (("targets", "onnxruntime", "precisions"), ["int8"], "precision int8"),
    (("targets", "openvino"), {"precisions": ["fp32", "bf8"]}, "precision bf8"),
    (("targets", "tensorrt"), {"precision": "fp16", "engines": {"mfm": "e"}}, "targets.tensorrt.engines.mfm names e"),
    (("files", "conditions/haze.safetensors", "sha256"), "abc", "not 64 hexadecimal digits"),
    (("files", "conditions/haze.safetensors", "bytes"), "1", "not a whole number"),
    (("files", ".."), {"bytes": 1, "sha256": "0" * 64}, "not a path inside the bundle"),
    (("precisions", "fp32", "onnx"), {}, "precisions.fp32.onnx.mfm is missing"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG)
def test_wrong_entries_are_named(keys: tuple[Any, ...], value: Any, message: str, copy: Path) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(edited(copy, lambda data: at(data, *keys, value=value)))


def test_unknown_keys_are_passed_over(copy: Path) -> None:
    assert Bundle.open(edited(copy, lambda data: data.update(later={"x": 1}))).manifest.name == "toy"


def test_write_replaces_a_bundle_whole(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "bundle", conditions=["haze"], precisions=["fp32"])
    (folder / "stray").touch()
    write_toy_bundle(folder, conditions=["rain"], precisions=["fp32"])
    assert set(Bundle.open(folder).manifest.conditions) == {"rain"}
    assert not (folder / "stray").exists()
    assert os.listdir(tmp_path) == ["bundle"]


def test_write_keeps_the_keys(copy: Path, tmp_path: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    data["files"] = {"onnx/fp32/mfm.onnx": {"key": "abc"}}
    bundle = write_bundle(data, copy, tmp_path / "again")
    assert bundle.manifest.files["onnx/fp32/mfm.onnx"].key == "abc"
    assert bundle.manifest.files["onnx/fp32/decoder.onnx"].key == ""
    assert not copy.exists()


def test_write_refuses_what_is_not_valid_and_leaves_all(copy: Path, tmp_path: Path) -> None:
    old = write_toy_bundle(tmp_path / "old", precisions=["fp32"])
    data = json.loads((copy / "bundle.json").read_text())
    del data["crops"]
    with pytest.raises(BundleError, match="crops is missing"):
        write_bundle(data, copy, old)
    Bundle.open(old).verify()
    assert (copy / "onnx").is_dir()


def test_write_never_replaces_what_is_no_bundle(copy: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").touch()
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write_bundle({}, copy, photos)
    assert (photos / "one.jpg").exists()


def test_write_puts_the_old_one_back(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_toy_bundle(tmp_path / "old", precisions=["fp32"], conditions=["rain"])
    data = json.loads((copy / "bundle.json").read_text())
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if Path(source) == copy:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(data, copy, old)
    assert set(Bundle.open(old).manifest.conditions) == {"rain"}


def test_threads_may_share_a_bundle(copy: Path) -> None:
    bundle = Bundle.open(copy)
    threads = [threading.Thread(target=bundle.verify) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bundle._verified == set(bundle.manifest.files)


def test_parse_wants_all_components(copy: Path) -> None:
    with pytest.raises(BundleError, match=r"components.decoder is missing"):
        Bundle.open(edited(copy, lambda data: data["components"].pop("decoder")))
