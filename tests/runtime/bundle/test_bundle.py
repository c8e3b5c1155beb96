"""Opening a bundle, verifying its files, and reading its conditions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dod_runtime.bundle import bundle as bundle_module
from dod_runtime.bundle.bundle import Bundle, hash_file
from dod_runtime.console import run_command
from dod_runtime.errors import BundleError, BundleNotFoundError, UsageError
from tests.runtime.toy_bundle import (
    FILTERS,
    edit_manifest,
    toy_modulation,
    toy_prototype,
    toy_weights,
    write_toy_bundle,
)


def flip(path: Path, position: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def wait(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, for at most ten seconds."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("the condition is still false after ten seconds")


def test_every_file_is_recorded(toy: Bundle) -> None:
    on_disk = {path.relative_to(toy.folder).as_posix() for path in toy.folder.rglob("*") if path.is_file()}
    assert on_disk - {"bundle.json", "report.md"} == set(toy.manifest.files)
    for name, record in toy.manifest.files.items():
        assert record.sha256 == hash_file(toy.folder / name) and record.bytes == (toy.folder / name).stat().st_size
    toy.verify()
    assert "toy" in repr(toy)


def test_modulation_is_that_of_the_prototype(toy: Bundle) -> None:
    expected = toy_modulation(toy_prototype("haze"), toy_weights(1)["mfm"])
    np.testing.assert_array_equal(toy.modulation("haze"), expected)
    with pytest.raises(UsageError, match="'haze'"):
        toy.modulation("hase")


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"none.*dod-export build --out"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"bundle\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file.*bundle\.json") as caught:
        Bundle.open(tmp_path / "file")
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_command_prints_one_line_for_a_missing_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> int:
        Bundle.open(tmp_path / "none")
        return 0

    assert run_command(main, []) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("error: ")
    assert str(tmp_path / "none") in printed and "dod-export build" in printed and "Errno" not in printed


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xff", b"[]", b"3", b"{}", b'{"schema": "1"}'])
def test_malformed_manifest(content: bytes, copy: Path) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "onnx/fp32/decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnx/fp32/decoder\.onnx.*dod-export build"):
        Bundle.open(copy)


def test_truncated_file_is_found_when_the_bundle_is_opened(copy: Path) -> None:
    path = copy / "onnx/fp32/unet.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"unet\.safetensors.*\d+ bytes"):
        Bundle.open(copy)


def test_changed_file_is_found_at_its_first_use(copy: Path) -> None:
    flip(copy / "onnx/fp32/encoder.onnx")
    bundle = Bundle.open(copy)
    bundle.path("onnx/fp32/decoder.onnx")
    with pytest.raises(BundleError, match=r"encoder\.onnx.* [0-9a-f]{64}.* [0-9a-f]{64}.*dod-export build"):
        bundle.path("onnx/fp32/encoder.onnx")
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        bundle.verify()


def test_hash_ahead_hashes_each_file_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert sorted(hashed) == ["decoder.onnx", "decoder.safetensors"]


def test_an_error_of_hash_ahead_is_raised_by_path(copy: Path) -> None:
    flip(copy / "onnx/fp32/encoder.onnx")
    bundle = Bundle.open(copy)
    bundle.hash_ahead("onnx/fp32/encoder.onnx")
    wait(lambda: not [thread for thread in threading.enumerate() if thread.name == "dod-hashing"])
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        bundle.path("onnx/fp32/encoder.onnx")


def test_path_of_a_graph_verifies_its_weights(copy: Path) -> None:
    flip(copy / "onnx/fp32/unet.safetensors")
    bundle = Bundle.open(copy)
    bundle.path("onnx/fp32/encoder.onnx")
    for component in ("unet_dynamic", "unet_merged"):
        with pytest.raises(BundleError, match=r"unet\.safetensors"):
            bundle.path(f"onnx/fp32/{component}.onnx")


@pytest.mark.parametrize("position", [20, -1], ids=["header", "weights"])
def test_changed_weights_are_not_merged(copy: Path, position: int) -> None:
    flip(copy / "onnx/fp32/unet.safetensors", position)
    bundle = Bundle.open(copy)
    with pytest.raises(BundleError, match=r"unet\.safetensors was changed"):
        bundle.merged(bundle.manifest.precisions["fp32"], "haze")


def test_unreadable_file(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> str:
        raise OSError(5, "Input/output error")

    bundle = Bundle.open(copy)
    monkeypatch.setattr(bundle_module, "hash_file", broken)
    bundle.hash_ahead("onnx/fp32/encoder.onnx")  # an exception in the thread would fail this test
    with pytest.raises(BundleError, match=r"encoder\.onnx.*Input/output error"):
        bundle.path("onnx/fp32/encoder.onnx")


def test_unknown_file(toy: Bundle) -> None:
    with pytest.raises(BundleError, match=r"nothing\.onnx.*decoder\.onnx"):
        toy.path("nothing.onnx")


def test_modulation_of_another_shape(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["components"]["mfm"]["outputs"][1].update(shape=["batch", 9, 2, 4]))
    with pytest.raises(BundleError, match=r"'modulation'.*\[9, 2, 4\].*\[2, 2, 4\]"):
        Bundle.open(copy).modulation("haze")


def test_condition_of_a_model_with_a_gate(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy_bundle(tmp_path / "gated", shares={"haze": 0.0, "noise": 0.5}))
    tensors = bundle.condition_tensors("noise")
    np.testing.assert_array_equal(tensors["condition"], toy_prototype("noise"))
    assert tensors["share"].tolist() == [0.5] and bundle.manifest.gated and bundle.manifest.filters == FILTERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": np.array([2], np.float32)}, "share 2"),
        ({"share": None}, "'share'"),
        ({"condition": None}, "'condition'"),
    ],
)
def test_condition_that_does_not_fit_the_gate(
    changes: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    folder = write_toy_bundle(tmp_path / "gated", shares={"noise": 0.5}, precisions=["fp32"])
    bundle = Bundle.open(folder)
    name = bundle.manifest.conditions["noise"]
    tensors = {**bundle.condition_tensors("noise"), **changes}
    save_file({key: np.array(value) for key, value in tensors.items() if value is not None}, folder / name)
    record = {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
    edit_manifest(folder, lambda data: data["files"].update({name: record}))
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder).condition_tensors("noise")


def test_threads_share_a_bundle(copy: Path) -> None:
    bundle = Bundle.open(copy)
    threads = [threading.Thread(target=bundle.verify) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bundle._verified == set(bundle.manifest.files)
