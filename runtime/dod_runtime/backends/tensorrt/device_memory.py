"""Memory on a GPU through `cuda.bindings`: device and pinned host buffers, kept for each image shape."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from ...errors import BackendError

__all__ = ["DeviceMemory", "DeviceTensor", "KeptByShape", "OutOfMemory", "call", "load_cudart"]

Value = TypeVar("Value")

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
NON_BLOCKING = 1  # cudaStreamNonBlocking


class OutOfMemory(BackendError):
    """The GPU, or the pinned memory of the host, is used up."""


def load_cudart() -> Any:
    """`cuda.bindings.runtime`. Raises BackendError where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(f"cuda.bindings cannot be imported ({error}); pip install cuda-bindings") from error
    return runtime


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Calls a function of the CUDA runtime. Returns its one result, or None. Raises BackendError with CUDA's words."""
    status, *results = function(*arguments)
    if int(status) == OUT_OF_MEMORY:
        raise OutOfMemory(f"{function.__name__}: out of memory on the GPU")
    if int(status) != 0:
        _, text = load_cudart().cudaGetErrorString(status)
        raise BackendError(f"{function.__name__}: {text.decode()} (cudaError {int(status)})")
    return results[0] if results else None


class KeptByShape(Generic[Value]):
    """Values by name in groups, one group for each shape; the least recently selected groups are freed.

    >>> freed = []
    >>> kept = KeptByShape(freed.append, most=2)
    >>> for shape in (1, 2, 1, 3):
    ...     kept.select(shape)
    ...     _ = kept.get("latent", lambda: f"latent of {shape}")
    >>> freed
    ['latent of 2']
    """

    def __init__(self, free: Callable[[Value], None], most: int = 4) -> None:
        self._free, self._most = free, most
        self._groups: OrderedDict[Hashable, dict[Hashable, Value]] = OrderedDict()

    def select(self, shape: Hashable) -> None:
        """Makes the group of `shape` the current one, and frees what is then one group too many."""
        self._groups.setdefault(shape, {})
        self._groups.move_to_end(shape)
        self.shrink(self._most)

    def get(self, name: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `name` in the current group, made where it is not there yet."""
        group = self._groups[next(reversed(self._groups))]
        if name not in group:
            group[name] = make()
        return group[name]

    def shrink(self, most: int = 1) -> None:
        """Frees the oldest groups until `most` are left; with 1, all but the current one."""
        while len(self._groups) > most:
            _, group = self._groups.popitem(last=False)
            for value in group.values():
                self._free(value)


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the GPU: its address, valid until its chain ends."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        """Its size, at least one byte, since nothing cannot be allocated."""
        return max(1, int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize)


@dataclass(frozen=True)
class Block:
    """Allocated memory, and the name of the function of the CUDA runtime that frees it."""

    address: int
    free: str


class DeviceMemory:
    """One stream of one GPU and the buffers that go with it. Not for two threads at once."""

    def __init__(self, device: int) -> None:
        self._cudart = load_cudart()
        self._device = device
        self.activate()
        self.stream = call(self._cudart.cudaStreamCreateWithFlags, NON_BLOCKING)
        self._buffers: KeptByShape[Block] = KeptByShape(self._free)
        self._scratch, self._scratch_bytes = 0, 0

    def activate(self) -> None:
        """Makes this GPU the current one of the calling thread, as every thread must before it uses it."""
        call(self._cudart.cudaSetDevice, self._device)

    def select(self, shape: tuple[int, ...]) -> None:
        """Begins to work on images of `shape`; buffers of shapes not seen for long are freed."""
        self._buffers.select(shape)

    def tensor(self, name: Hashable, shape: tuple[int, ...], dtype: np.dtype) -> DeviceTensor:
        """The device buffer of this name, shape and dtype."""
        made = DeviceTensor(0, shape, dtype)
        make = partial(self._allocate, made.bytes, "cudaMalloc", "cudaFree")
        return DeviceTensor(self._buffers.get(("device", name, shape, dtype.str), make).address, shape, dtype)

    def pinned(self, name: Hashable, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The pinned host buffer of this name, shape and dtype, as an array."""
        size = DeviceTensor(0, shape, dtype).bytes
        make = partial(self._allocate, size, "cudaMallocHost", "cudaFreeHost")
        block = self._buffers.get(("host", name, shape, dtype.str), make)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(block.address))
        return raw[: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize].view(dtype).reshape(shape)

    def scratch(self, size: int) -> int:
        """The address of at least `size` bytes that all engines share: one stream runs one engine at a time."""
        if size > self._scratch_bytes:
            self.synchronize()
            self._release_scratch()
            self._scratch = self._allocate(size, "cudaMalloc", "cudaFree").address
            self._scratch_bytes = size
        return self._scratch

    def upload(self, name: Hashable, array: np.ndarray, dtype: np.dtype) -> DeviceTensor:
        """Copies an array to its device buffer, through pinned memory, cast to `dtype` where it has another."""
        pinned = self.pinned(name, array.shape, dtype)
        np.copyto(pinned, array, casting="same_kind")
        target = self.tensor(name, array.shape, dtype)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cudart.cudaMemcpyAsync, target.address, pinned.ctypes.data, pinned.nbytes, kind, self.stream)
        return target

    def download(self, tensor: DeviceTensor) -> np.ndarray:
        """Waits for the stream and returns a copy of a tensor."""
        pinned = self.pinned("download", tensor.shape, tensor.dtype)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cudart.cudaMemcpyAsync, pinned.ctypes.data, tensor.address, pinned.nbytes, kind, self.stream)
        self.synchronize()
        return pinned.copy()

    def synchronize(self) -> None:
        """Waits until everything on the stream is done."""
        call(self._cudart.cudaStreamSynchronize, self.stream)

    def stopwatch(self) -> Callable[[], float]:
        """Records an event; the function returned records another, waits for it and gives the seconds between."""
        start = call(self._cudart.cudaEventCreate)
        call(self._cudart.cudaEventRecord, start, self.stream)

        def elapsed() -> float:
            end = call(self._cudart.cudaEventCreate)
            try:
                call(self._cudart.cudaEventRecord, end, self.stream)
                call(self._cudart.cudaEventSynchronize, end)
                return call(self._cudart.cudaEventElapsedTime, start, end) / 1000
            finally:
                call(self._cudart.cudaEventDestroy, start)
                call(self._cudart.cudaEventDestroy, end)

        return elapsed

    def close(self) -> None:
        """Frees all buffers and the stream."""
        self.activate()
        self.synchronize()
        self._buffers.shrink(0)
        self._release_scratch()
        call(self._cudart.cudaStreamDestroy, self.stream)

    def _allocate(self, size: int, allocate: str, free: str) -> Block:
        function = getattr(self._cudart, allocate)
        try:
            return Block(int(call(function, size)), free)
        except OutOfMemory:
            self.synchronize()
            self._buffers.shrink()
        try:
            return Block(int(call(function, size)), free)
        except OutOfMemory as error:
            raise OutOfMemory(
                f"no {size / 2**20:.0f} MiB left for a buffer ({allocate}): use a smaller batch or smaller images"
            ) from error

    def _free(self, block: Block) -> None:
        call(getattr(self._cudart, block.free), block.address)

    def _release_scratch(self) -> None:
        if self._scratch:
            call(self._cudart.cudaFree, self._scratch)
        self._scratch, self._scratch_bytes = 0, 0
