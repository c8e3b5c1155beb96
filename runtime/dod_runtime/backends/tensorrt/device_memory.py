"""GPU memory through `cuda.bindings`: device buffers and pinned host buffers, kept for each image shape."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import BackendError
from .kept_by_shape import KeptByShape

__all__ = ["DeviceMemory", "DeviceTensor", "OutOfMemory", "call", "load_cudart"]

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
NON_BLOCKING = 1  # cudaStreamNonBlocking


class OutOfMemory(BackendError):
    """The GPU, or the host's pinned memory, is exhausted."""


def load_cudart() -> Any:
    """Return the module `cuda.bindings.runtime`.

    Raises:
        BackendError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(
            f"cuda.bindings cannot be imported ({error}); install it with: pip install cuda-bindings"
        ) from error
    return runtime


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime.

    Args:
        function: the function, which returns a status and at most one result.
        *arguments: its arguments.

    Returns:
        The result, None where there is none.

    Raises:
        OutOfMemory: memory is exhausted.
        BackendError: the call failed; the text is CUDA's.
    """
    status, *results = function(*arguments)
    if int(status) == OUT_OF_MEMORY:
        raise OutOfMemory(f"{function.__name__}: out of memory on the GPU")
    if int(status) != 0:
        _, text = load_cudart().cudaGetErrorString(status)
        raise BackendError(f"{function.__name__}: {text.decode()} (cudaError {int(status)})")
    return results[0] if results else None


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the GPU.

    Attributes:
        address: device address, valid until the `batch` of the backend ends.
        shape: its shape.
        dtype: its dtype.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        """Size in bytes, at least 1 because CUDA allocates no empty buffers."""
        return max(1, int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize)


@dataclass(frozen=True)
class Block:
    """A block of allocated memory.

    Attributes:
        address: its address.
        free: name of the CUDA runtime's function that frees it.
    """

    address: int
    free: str


class DeviceMemory:
    """One stream of one GPU with its buffers. Threads must take turns.

    Args:
        device: index of the GPU.
    """

    def __init__(self, device: int) -> None:
        self._cudart = load_cudart()
        self._device = device
        self.activate()
        self.stream = call(self._cudart.cudaStreamCreateWithFlags, NON_BLOCKING)
        self._buffers: KeptByShape[Block] = KeptByShape(self._free)
        self._scratch, self._scratch_bytes = 0, 0

    def activate(self) -> None:
        """Make this GPU the current one of the calling thread, which each thread must do before it uses the GPU."""
        call(self._cudart.cudaSetDevice, self._device)

    def select(self, shape: tuple[int, ...]) -> None:
        """Select the buffers of an image shape. Buffers of shapes that were not used for long are freed.

        Args:
            shape: shape of the batch.
        """
        self._buffers.select(shape)

    def tensor(self, name: Hashable, shape: tuple[int, ...], dtype: np.dtype) -> DeviceTensor:
        """Return a device buffer; the same name, shape and dtype give the same buffer.

        Args:
            name: name of the buffer.
            shape: shape of the tensor.
            dtype: dtype of the tensor.
        """
        made = DeviceTensor(0, shape, dtype)
        make = partial(self._allocate, made.bytes, "cudaMalloc", "cudaFree")
        return DeviceTensor(self._buffers.get(("device", name, shape, dtype.str), make).address, shape, dtype)

    def pinned(self, name: Hashable, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return a pinned host buffer as an array; the same name, shape and dtype give the same buffer.

        Args:
            name: name of the buffer.
            shape: shape of the array.
            dtype: dtype of the array.
        """
        size = DeviceTensor(0, shape, dtype).bytes
        make = partial(self._allocate, size, "cudaMallocHost", "cudaFreeHost")
        block = self._buffers.get(("host", name, shape, dtype.str), make)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(block.address))
        return raw[: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize].view(dtype).reshape(shape)

    def scratch(self, size: int) -> int:
        """Return the address of scratch memory that all engines share, because a stream runs one engine at a time.

        Args:
            size: minimum size in bytes.
        """
        if size > self._scratch_bytes:
            self.synchronize()
            self._release_scratch()
            self._scratch = self._allocate(size, "cudaMalloc", "cudaFree").address
            self._scratch_bytes = size
        return self._scratch

    def upload(self, name: Hashable, array: np.ndarray, dtype: np.dtype) -> DeviceTensor:
        """Copy an array to its device buffer through pinned memory, without waiting.

        Args:
            name: name of the buffers.
            array: the array.
            dtype: dtype on the device; the array is cast to it.

        Returns:
            The tensor on the GPU.
        """
        pinned = self.pinned(name, array.shape, dtype)
        np.copyto(pinned, array, casting="same_kind")
        target = self.tensor(name, array.shape, dtype)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cudart.cudaMemcpyAsync, target.address, pinned.ctypes.data, pinned.nbytes, kind, self.stream)
        return target

    def download(self, tensor: DeviceTensor) -> np.ndarray:
        """Wait for the stream and return a copy of a tensor.

        Args:
            tensor: the tensor.
        """
        pinned = self.pinned("download", tensor.shape, tensor.dtype)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cudart.cudaMemcpyAsync, pinned.ctypes.data, tensor.address, pinned.nbytes, kind, self.stream)
        self.synchronize()
        return pinned.copy()

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        call(self._cudart.cudaStreamSynchronize, self.stream)

    def stopwatch(self) -> Callable[[], float]:
        """Record an event on the stream.

        Returns:
            A function that records a second event, waits for it and returns the seconds between the two.
        """
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
        """Free all buffers and the stream."""
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
                f"no {size / 2**20:.0f} MiB left for a buffer ({allocate}): use a smaller batch or tile size"
            ) from error

    def _free(self, block: Block) -> None:
        call(getattr(self._cudart, block.free), block.address)

    def _release_scratch(self) -> None:
        if self._scratch:
            call(self._cudart.cudaFree, self._scratch)
        self._scratch, self._scratch_bytes = 0, 0
