"""Reads and writes safetensors files with numpy alone. Every number in a header is checked before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import BundleError

__all__ = ["ALIGNMENT", "Span", "memory_map", "read_tensors", "tensor_spans", "write_tensors"]

MAX_HEADER = 100_000_000
ALIGNMENT = 64
"""Bytes. What a runtime maps it takes as it lies only where that is a multiple of this; else it makes a copy."""

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


class Span(NamedTuple):
    """Where one tensor lies: its dtype and shape, the file's first byte of it and the first one behind it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def memory_map(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 [size], read-only. Raises OSError."""
    return np.memmap(path, np.uint8, "r")


def read_tensors(
    path: str | PathLike[str], map_file: Callable[[Path], np.ndarray] = memory_map
) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, as read-only views of one memory map, which `map_file` makes.

    Raises BundleError where the file is absent, is not safetensors, or holds a type that numpy has not (bfloat16).
    """
    spans = tensor_spans(path)
    if not any(end > begin for _, _, begin, end in spans.values()):
        return {name: np.empty(shape, dtype) for name, (dtype, shape, _, _) in spans.items()}
    data = map_file(Path(path))
    return {name: data[begin:end].view(dtype).reshape(shape) for name, (dtype, shape, begin, end) in spans.items()}


def write_tensors(
    path: str | PathLike[str], shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Iterable[np.ndarray]
) -> str:
    """Writes tensors one after the other as they come, never two at once; returns the file's SHA-256 in hexadecimal.

    shapes: dtype and shape of each tensor by name; values: in the same order. The first lies at a multiple of
    ALIGNMENT, as do those behind tensors whose sizes are such. Raises ValueError where one differs.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for (name, (dtype, shape)), value in zip(shapes.items(), values, strict=True):
            if (value.dtype, value.shape) != (dtype, shape):
                raise ValueError(f"{name} was to be {dtype} {shape}, is {value.dtype} {value.shape}")
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def tensor_spans(path: str | PathLike[str]) -> dict[str, Span]:
    """Where each tensor of a safetensors file lies, by name. Raises BundleError as `read_tensors` does."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise _hostile(path, f"its header claims {length} bytes of a file of {size}")
            header = _header(path, file.read(length))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    start = 8 + length
    spans = {name: _span(path, name, entry, size - start) for name, entry in header.items() if name != "__metadata__"}
    _check_cover(path, [(span.begin, span.end) for span in spans.values()], size - start)
    return {name: span._replace(begin=start + span.begin, end=start + span.end) for name, span in spans.items()}


def _header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _hostile(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _hostile(path, "its header is not a JSON object")
    return header


def _span(path: Path, name: str, entry: Any, space: int) -> Span:
    """One header entry, its bytes counted from the start of the data, checked against the `space` bytes of data."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _hostile(path, f"the entry of {name!r} is incomplete")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise _hostile(path, f"{name!r} has the type {kind!r}, which is not one of {', '.join(DTYPES)}")
    if not (_naturals(shape) and len(shape) <= 32 and _naturals(offsets) and len(offsets) == 2):
        raise _hostile(path, f"shape or offsets of {name!r} are not lists of natural numbers")
    begin, end = offsets
    if not begin <= end <= space:
        raise _hostile(path, f"{name!r} lies at bytes {begin} to {end} of {space}")
    if end - begin != prod(shape) * DTYPES[kind].itemsize:
        raise _hostile(path, f"{name!r} of shape {shape} and type {kind} cannot take {end - begin} bytes")
    return Span(DTYPES[kind], tuple(shape), begin, end)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_cover(path: Path, spans: list[tuple[int, int]], space: int) -> None:
    """The format wants the tensors to lie one after the other: no overlap, no hole, nothing behind the last."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise _hostile(path, f"its tensors {'overlap' if begin < reached else 'leave a hole'} at byte {begin}")
        reached = end
    if reached != space:
        raise _hostile(path, f"its tensors end at byte {reached} of {space}")


def _hostile(path: Path, what: str) -> BundleError:
    return BundleError(f"{path} is not a valid safetensors file: {what}")
