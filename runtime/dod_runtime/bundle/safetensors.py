"""Reading and writing of safetensors files with NumPy alone. Every number of a header is checked before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import msgspec
import numpy as np
from msgspec import Meta

from ..errors import BundleError
from ..files import atomic_write

__all__ = ["ALIGNMENT", "Span", "memory_map", "read_tensors", "tensor_spans", "write_tensors"]

MAX_HEADER = 100_000_000
"""Maximum size of a header in bytes, as in the safetensors library."""
ALIGNMENT = 64
"""Alignment in bytes of the first tensor. Runtimes use mapped weights in place if they are aligned, and copy others."""

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

Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Span(NamedTuple):
    """Location of one tensor in a file.

    Attributes:
        dtype: dtype of the tensor.
        shape: shape of the tensor.
        begin: offset in the file of its first byte.
        end: offset in the file of the byte after its last one.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class _Entry:
    """One entry of a header, as the file has it. A tensor has at most 32 dimensions."""

    dtype: str
    shape: Annotated[tuple[Natural, ...], Meta(max_length=32)]
    data_offsets: tuple[Natural, Natural]


def memory_map(path: Path) -> np.ndarray:
    """Map a file into memory.

    Args:
        path: file to map.

    Returns:
        Its bytes, read-only uint8 `[size]`.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    return np.memmap(path, np.uint8, "r")


def read_tensors(
    path: str | PathLike[str], map_file: Callable[[Path], np.ndarray] = memory_map
) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Args:
        path: file to read.
        map_file: maps the file into memory.

    Returns:
        Tensors by name, as read-only views of one memory map.

    Raises:
        BundleError: the file is missing or is not a valid safetensors file, or it has a dtype that NumPy lacks, such as
            bfloat16.
    """
    spans = tensor_spans(path)
    if not any(end > begin for _, _, begin, end in spans.values()):
        return {name: np.empty(shape, dtype) for name, (dtype, shape, _, _) in spans.items()}
    data = map_file(Path(path))
    return {name: data[begin:end].view(dtype).reshape(shape) for name, (dtype, shape, begin, end) in spans.items()}


def write_tensors(
    path: str | PathLike[str], shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Iterable[np.ndarray]
) -> str:
    """Write a safetensors file as a whole, one tensor at a time. The first tensor is aligned to `ALIGNMENT` bytes.

    Args:
        path: file to write.
        shapes: dtype and shape of each tensor by name.
        values: the tensors in the same order. An iterator can compute each when its turn comes.

    Returns:
        The SHA-256 of the file in hexadecimal.

    Raises:
        ValueError: a tensor has another dtype or shape, or their number differs. `path` stays as it was.
        OSError: the file cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "weights.safetensors"
        >>> digest = write_tensors(path, {"bias": (np.dtype(np.float32), (2,))}, [np.array([1, 2], np.float32)])
        >>> {name: tensor.tolist() for name, tensor in read_tensors(path).items()}
        {'bias': [1.0, 2.0]}
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    digest = hashlib.sha256()
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for (name, (dtype, shape)), value in zip(shapes.items(), values, strict=True):
            if (value.dtype, value.shape) != (dtype, shape):
                raise ValueError(f"{name} must be {dtype} {shape}, is {value.dtype} {value.shape}")
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def tensor_spans(path: str | PathLike[str]) -> dict[str, Span]:
    """Read the header of a safetensors file.

    Args:
        path: file to read.

    Returns:
        Location of each tensor by name.

    Raises:
        BundleError: as in `read_tensors`.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise _malformed(path, f"its header claims {length} bytes of a file of {size}")
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
        raise _malformed(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _malformed(path, "its header is not a JSON object")
    return cast(dict[str, Any], header)


def _span(path: Path, name: str, entry: Any, space: int) -> Span:
    """Check one entry of a header against the `space` bytes of data. Offsets count from the start of the data."""
    try:
        checked = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        raise _malformed(path, f"the entry of {name!r} is not valid ({error})") from error
    kind, shape, (begin, end) = checked.dtype, checked.shape, checked.data_offsets
    if kind not in DTYPES:
        raise _malformed(path, f"{name!r} has the dtype {kind!r}, which is not one of {', '.join(DTYPES)}")
    if not begin <= end <= space:
        raise _malformed(path, f"{name!r} is at bytes {begin} to {end} of {space}")
    if end - begin != prod(shape) * DTYPES[kind].itemsize:
        raise _malformed(path, f"{name!r} of shape {list(shape)} and dtype {kind} cannot take {end - begin} bytes")
    return Span(DTYPES[kind], shape, begin, end)


def _check_cover(path: Path, spans: list[tuple[int, int]], space: int) -> None:
    """Check that the tensors are contiguous, as the format demands: no overlap, no hole, nothing after the last."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise _malformed(path, f"its tensors {'overlap' if begin < reached else 'leave a hole'} at byte {begin}")
        reached = end
    if reached != space:
        raise _malformed(path, f"its tensors end at byte {reached} of {space}")


def _malformed(path: Path, what: str) -> BundleError:
    return BundleError(f"{path} is not a valid safetensors file: {what}")
