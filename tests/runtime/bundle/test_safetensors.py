"""Reader and writer compared with the safetensors library, and malformed files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from dod_runtime.bundle.safetensors import ALIGNMENT, DTYPES, read_tensors, tensor_spans, write_tensors
from dod_runtime.errors import BundleError


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def test_the_library_reads_written_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {str(dtype): random.integers(0, 2, (3, 5)).astype(dtype) for dtype in DTYPES.values()}
    tensors |= {"scalar": np.array(3, np.float32), "turned": random.random((4, 3)).T, "empty": np.zeros((0, 4))}
    shapes = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    path = tmp_path / "t.safetensors"
    assert write_tensors(path, shapes, iter(tensors.values())) == hashlib.sha256(path.read_bytes()).hexdigest()
    for found in (load_file(path), read_tensors(path)):
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype


@pytest.mark.parametrize("name", ["a", "a longer name", "n" * 60])
def test_the_first_tensor_is_aligned(tmp_path: Path, name: str) -> None:
    shapes = {name: (np.dtype(np.float32), (16,)), "b": (np.dtype(np.float16), (3,))}
    write_tensors(tmp_path / "t", shapes, [np.zeros(16, np.float32), np.zeros(3, np.float16)])
    assert [span.begin % ALIGNMENT for span in tensor_spans(tmp_path / "t").values()] == [0, 0]


def test_a_tensor_of_another_dtype_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a .*float32 \(2,\).*float64 \(2,\)"):
        write_tensors(tmp_path / "t.safetensors", {"a": (np.dtype(np.float32), (2,))}, [np.zeros(2)])
    assert not list(tmp_path.iterdir())


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {
        **{str(dtype): random.integers(0, 2, (3, 5)).astype(dtype) for dtype in DTYPES.values()},
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "t.safetensors", metadata={"made": "here"})
    ours, theirs = read_tensors(tmp_path / "t.safetensors"), load_file(tmp_path / "t.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape
        assert not ours[name].flags.writeable or ours[name].size == 0


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert read_tensors(written(tmp_path / "t", {"__metadata__": {"a": "b"}})) == {}


MALFORMED = {
    "header longer than the file": (entry(), bytes(8), 1 << 40),
    "header of 2**64-1 bytes": (entry(), bytes(8), (1 << 64) - 1),
    "not JSON": (b"{", b"", None),
    "not UTF-8": (b"\xff\xfe{}", b"", None),
    "not an object": ([1], b"", None),
    "deep": (b"[" * 200_000, b"", None),
    "name twice": (b'{"a": 1, "a": 2}', b"", None),
    "entry not an object": ({"a": 3}, b"", None),
    "entry incomplete": ({"a": {"dtype": "F32"}}, b"", None),
    "unknown dtype": (entry("BF16", (2,), (0, 4)), bytes(4), None),
    "dtype not a string": (entry(["F32"]), bytes(8), None),
    "beyond the end": (entry(offsets=(0, 16), shape=(4,)), bytes(8), None),
    "end before begin": (entry(offsets=(8, 0)), bytes(8), None),
    "negative offset": (entry(offsets=(-8, 0)), bytes(8), None),
    "negative size": (entry(shape=(-2,)), bytes(8), None),
    "size of a float": (entry(shape=(2.0,)), bytes(8), None),
    "size of a bool": (entry(shape=(True, 2)), bytes(8), None),
    "shape does not fit": (entry(shape=(3,)), bytes(8), None),
    "overflowing shape": (entry(shape=(1 << 62, 1 << 62)), bytes(8), None),
    "three offsets": (entry(offsets=(0, 4, 8)), bytes(8), None),
    "too many dimensions": (entry(shape=[1] * 99 + [2]), bytes(8), None),
    "bytes left over": (entry(), bytes(9), None),
    "hole": (entry(offsets=(4, 12)), bytes(12), None),
    "overlap": (entry() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12), None),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(case: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"t\.safetensors is not a valid safetensors file"):
        read_tensors(written(tmp_path / "t.safetensors", *MALFORMED[case]))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x02\0\0\0\0\0\0\0"])
def test_short_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(BundleError):
        read_tensors(tmp_path / "t")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="none: No such file"):
        read_tensors(tmp_path / "none")


@given(position=st.integers(0, 300), value=st.integers(0, 255))
def test_a_file_with_any_changed_byte_is_read_or_refused(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.int64)}, path)
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = value
    path.write_bytes(raw)
    try:
        tensors = read_tensors(path)
    except BundleError:
        return
    assert all(tensor.nbytes <= len(raw) for tensor in tensors.values())
