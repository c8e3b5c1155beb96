"""The public class of the runtime: a bundle on a backend, images in, restored images out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backends import open_backend
from .backends.base import BackendInfo, BackendOptions
from .batch_runner import BatchRunner, SizeRules
from .bundle.bundle import Bundle
from .condition_path import AUTO, ConditionPath
from .errors import ImageError, UsageError, unknown
from .image.read import Source
from .pipeline import Decisions, Observer, Pipeline
from .restoration import PreparedImage, Restoration, Restored

__all__ = ["Observer", "Restorer"]

FileOrImage: TypeAlias = str | os.PathLike[str] | Image.Image
Scalar = TypeVar("Scalar", bound=np.generic)


class Restorer:
    """A bundle that is open on one backend. Threads may share it.

    Args:
        bundle: folder of the bundle, or an open `Bundle`.
        backend: `tensorrt`, `tensorrt_rtx`, `onnxruntime_cuda`, `openvino` or `onnxruntime_cpu`; `auto` takes the first
            of them that can run here, `onnxruntime` CUDA if possible, else the CPU. The choice is final: see `info`.
        device: index of the GPU.
        precision: `auto`, a precision of the bundle, or `bf16` on `openvino` where the bundle passed its parity check.
        num_threads: number of CPU threads (default: all cores).
        tile_size: longest side in px that is restored whole (default: the largest of the bundle). Larger images are
            restored in overlapping tiles. All tiles use the modulation of the whole image, and are matched in tone to a
            guide: the whole image restored in one run, reduced first where it is larger than the bundle allows.
        bypass: let images bypass the model. On `auto` the gate decides how much of an image bypasses it; a named
            condition has a fixed bypass weight. With `mini`, that of `blur` is 1: a linear filter sharpens every image
            and the model does not restore it. False restores every image with the model. No effect on bundles without
            a gate.

    Raises:
        BundleError: the bundle is missing, incomplete, changed or of another schema.
        BackendError: no backend, or not the one that was named, can run here.
        UsageError: a name is unknown or a number is out of range.

    Example:
        >>> with Restorer("build/mini") as restorer:  # doctest: +SKIP
        ...     restorer.restore("street.jpg").save("restored.png")
        ...     restored = restorer(array, "haze")
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str = "auto",
        *,
        device: int = 0,
        precision: str = "auto",
        num_threads: int | None = None,
        tile_size: int | None = None,
        bypass: bool = True,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise UsageError(f"num_threads must be at least 1, not {num_threads}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        rules = SizeRules.of(self.bundle.manifest, tile_size)
        self._backend = open_backend(backend, self.bundle, BackendOptions(device, precision, num_threads))
        self._pipeline = Pipeline(self.bundle, self._backend, bypass)
        self._runner = BatchRunner(self._pipeline, rules)
        self._paths = {name: ConditionPath(name) for name in self._backend.conditions}
        # Parts of a backend, such as ONNX Runtime's arena, outlive it: a restorer may be dropped without being closed.
        weakref.finalize(self, self._backend.close).atexit = False

    @property
    def info(self) -> BackendInfo:
        """The backend with its version, device and precision, and why it was chosen."""
        return self._backend.info

    @property
    def backend(self) -> str:
        """Name of the backend, such as `onnxruntime_cpu`."""
        return self.info.name

    @property
    def precision(self) -> str:
        """Precision it computes in, such as `fp16`."""
        return self.info.precision

    @property
    def description(self) -> str:
        """The backend with its version, device and precision, as one line."""
        return str(self.info)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names that `condition` may have: `auto`, and the conditions of the bundle that this backend can run."""
        return self._backend.conditions

    @overload
    def restore(
        self, image: NDArray[Scalar], condition: str = ..., *, details: Literal[False] = ...
    ) -> NDArray[Scalar]: ...
    @overload
    def restore(self, image: FileOrImage, condition: str = ..., *, details: Literal[False] = ...) -> Image.Image: ...
    @overload
    def restore(
        self, image: NDArray[Scalar], condition: str = ..., *, details: Literal[True]
    ) -> Restoration[NDArray[Scalar]]: ...
    @overload
    def restore(
        self, image: FileOrImage, condition: str = ..., *, details: Literal[True]
    ) -> Restoration[Image.Image]: ...
    @overload
    def restore(self, image: Source, condition: str = ..., *, details: bool = ...) -> Any: ...

    def restore(self, image: Source, condition: str = AUTO, *, details: bool = False) -> Any:
        """Restore one image of any size.

        Args:
            image: path, Pillow image, or array `[H, W]` or `[H, W, C]` of uint8, uint16 or float in 0..1, where C is 1
                (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha).
            condition: one of `conditions`. A condition whose bypass weight is 1, such as `blur` of `mini`, only
                sharpens images, unless the restorer was opened with `bypass=False`.
            details: return a `Restoration`, which also has the bypass share.

        Returns:
            An array of the same dtype and layout for an array; for a path or a Pillow image a Pillow image, upright and
            with its color profile.

        Raises:
            ImageError: the image cannot be read, or the result has NaN or infinite values.
            BackendError: a component cannot be loaded or fails, or the backend was closed (see `close`).
            BundleError: a file of the bundle is missing or was changed; files are verified when they are first used.
            UsageError: the condition is unknown.
        """
        path = self._path(condition)
        (restored,) = self._runner.run([self._runner.prepare(image, path)], path)
        if isinstance(restored, ImageError):
            raise restored
        return restored if details else restored.image

    __call__ = restore

    @overload
    def restore_many(
        self, images: Iterable[NDArray[Scalar]], condition: str = ..., batch_size: int = ...
    ) -> Iterator[NDArray[Scalar]]: ...
    @overload
    def restore_many(
        self, images: Iterable[FileOrImage], condition: str = ..., batch_size: int = ...
    ) -> Iterator[Image.Image]: ...
    @overload
    def restore_many(
        self,
        images: Iterable[Source],
        condition: str = ...,
        batch_size: int = ...,
        *,
        return_errors: bool = ...,
        details: bool = ...,
    ) -> Iterator[Any]: ...

    def restore_many(
        self,
        images: Iterable[Source],
        condition: str = AUTO,
        batch_size: int = 1,
        *,
        return_errors: bool = False,
        details: bool = False,
    ) -> Iterator[Any]:
        """Restore images lazily and in order.

        Args:
            images: images as `restore` takes them.
            condition: one of `conditions`, for all images.
            batch_size: largest number of consecutive images of one padded size that run together; capped at the
                largest batch of the bundle.
            return_errors: yield the ImageError of a bad image in its place instead of raising it.
            details: yield `Restoration`s.

        Yields:
            What `restore` returns for each image.

        Raises:
            ImageError: see `restore`; without `return_errors`, raised when the turn of the image comes. It ends the
                iteration.
            BackendError: see `restore`; raised in any case.
            BundleError: see `restore`; raised in any case.
            UsageError: the condition is unknown, or `batch_size` is below 1; raised by the call itself.
        """
        path = self._path(condition)
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        most = min(batch_size, self.bundle.manifest.profile.batch[2])
        return _results(self._runner.stream(images, path, most), return_errors, details)

    def warmup(self, condition: str = AUTO, size: tuple[int, int] | None = None, batch_size: int = 1) -> None:
        """Open a condition path, so that its first image need not wait for reading, merging and compiling.

        Args:
            condition: one of `conditions`.
            size: height and width in px of the images to come (default: the usual size of the bundle). `openvino`
                compiles all components except the UNet for one size; others ignore it.
            batch_size: number of images that will run together.

        Raises:
            BackendError: a component cannot be loaded.
            BundleError: a file of the bundle is missing or was changed.
            UsageError: the condition is unknown, or a size or `batch_size` is below 1.
        """
        path = self._path(condition)
        components, profile = self.bundle.manifest.components, self.bundle.manifest.profile
        size = size or (profile.size[1], profile.size[1])
        if batch_size < 1 or min(size) < 1:
            raise UsageError(f"batch_size and size must be at least 1, not {batch_size} and {size}")
        batch_size = min(batch_size, profile.batch[2])
        height, width = (self._runner.sizes.run_side(side) for side in size)
        with self._backend.batch((batch_size, 3, height, width)):
            shapes = {
                component: tuple(spec.sized(batch_size, height, width) for spec in components[component].inputs)
                for component in self._pipeline.components(path)
            }
            self._backend.open(shapes, path.merged)

    def check_condition(self, condition: str) -> None:
        """Check the name of a condition.

        Args:
            condition: the name.

        Raises:
            UsageError: this backend cannot run the condition; the text has the valid names.
        """
        self._path(condition)

    def prepare(self, image: Source, condition: str = AUTO) -> PreparedImage:
        """Read and pad an image, and take the crops that its condition path needs; the first step of `restore`.

        Args:
            image: image as `restore` takes it.
            condition: one of `conditions`.

        Returns:
            The padded image, float32 `[3, H, W]` in [-1, 1], with the crops that the path needs.

        Raises:
            ImageError: the image cannot be read.
            BundleError: the file of the condition is missing, was changed or does not fit the model.
            UsageError: the condition is unknown.
        """
        return self._runner.prepare(image, self._path(condition))

    def decide(self, batch_size: int, crops: np.ndarray | None, condition: str) -> dict[str, np.ndarray]:
        """Compute the values that are decided once for each image of a batch.

        Args:
            batch_size: number of images B.
            crops: float32 `[B, K, 3, R, R]` in [-1, 1], None where the path needs none.
            condition: one of `conditions`.

        Returns:
            float32 arrays by name: `modulation` `[B, N, 2, r]` on `auto`, and for models with a gate `share` `[B, 1]`
            and `gains` `[B, F]`. See `pipeline.Decisions`.

        Raises:
            BackendError: a component cannot be loaded or fails, or the backend was closed.
            BundleError: a file of the bundle is missing or was changed.
            UsageError: the condition is unknown, or crops are missing.
        """
        return self._pipeline.decide(batch_size, crops, self._path(condition))

    def run_components(
        self,
        images: np.ndarray,
        crops: np.ndarray | None = None,
        condition: str = AUTO,
        observe: Observer | None = None,
        *,
        decisions: Decisions | None = None,
    ) -> np.ndarray:
        """Run the components of a condition path on padded images; the step of `restore` between its first and last.

        Args:
            images: float32 `[B, 3, H, W]` in [-1, 1].
            crops: float32 `[B, K, 3, R, R]` in [-1, 1] for the MFM and the gate; unused where `decisions` are given.
            condition: one of `conditions`.
            observe: receives the seconds of each component.
            decisions: result of `decide`, by default decided here.

        Returns:
            The restored images, float32 `[B, 3, H, W]`.

        Raises:
            BackendError: a component cannot be loaded or fails, or the backend was closed.
            BundleError: a file of the bundle is missing or was changed.
            UsageError: the condition is unknown, or there are neither crops nor decisions.
        """
        return self._pipeline.run(images, crops, self._path(condition), observe, decisions=decisions)

    def guide(self, images: np.ndarray, restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Restore padded images that are larger than a tile in one run, as a guide for the tone of their tiles.

        Args:
            images: float32 `[B, 3, H, W]` in [-1, 1].
            restore: function that restores such images.

        Returns:
            The guide; see `image.tiling.restore_guide`.
        """
        return self._runner.guide(images, restore)

    def close(self) -> None:
        """Free the sessions and the GPU memory of the backend. A second call does nothing.

        A closed restorer is not meant to be used again: `tensorrt` and `tensorrt_rtx` raise BackendError, the other
        backends load their sessions again.
        """
        self._backend.close()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Restorer({str(self.bundle.folder)!r}, backend={self.backend!r}, precision={self.precision!r})"

    def _path(self, condition: str) -> ConditionPath:
        if condition not in self._paths:
            raise unknown("condition", condition, self._paths)
        return self._paths[condition]


def _results(stream: Iterator[Restoration[Restored] | ImageError], return_errors: bool, details: bool) -> Iterator[Any]:
    for result in stream:
        if isinstance(result, ImageError) and not return_errors:
            raise result
        yield result if details or isinstance(result, ImageError) else result.image
