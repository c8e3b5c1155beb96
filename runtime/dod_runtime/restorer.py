"""The public class: a bundle and a backend, images in, restored images out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from .backends import open_backend
from .backends.base import Options
from .bundle.bundle import Bundle
from .errors import ImageError, UsageError, unknown
from .image.geometry import crops, pad, with_margins
from .image.read import DecodedImage, Source, read
from .image.tiling import check_tile_size, restore_guide, restore_tiles
from .pipeline import Decisions, Observer, Pipeline

__all__ = ["Observer", "Prepared", "Restoration", "Restored", "Restorer"]

Restored: TypeAlias = Image.Image | np.ndarray
PASSED = 0.99
"""Bypass share from which on tiles need no matching in tone: nearly all of the image is its own."""


@dataclass(frozen=True)
class Restoration:
    """A restored image and what was decided about it.

    bypass_share: the share of it that passed the model, in 0 to 1. At 0 the model restored all of it, at 1 the image
    was sharpened only, as blurred and clean images are.
    """

    image: Restored
    bypass_share: float


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to run. loaded: as it was read. image: float32 [3, H, W] in [-1, 1].
    crops: float32 [K, 3, R, R].

    The image lies in the middle of `image`, between reflected margins (`geometry.with_margins`).
    """

    loaded: DecodedImage
    image: np.ndarray
    crops: np.ndarray | None

    def finish(self, restored: np.ndarray) -> Restored:
        """Cuts the margins off a restored image, float32 [3, H, W] in [-1, 1], and gives it the image's own kind."""
        height, width = self.loaded.pixels.shape[:2]
        top, left = (restored.shape[1] - height) // 2, (restored.shape[2] - width) // 2
        return self.loaded.finish(restored[:, top : top + height, left : left + width].transpose(1, 2, 0))


class Restorer:
    """Restores images with one bundle on one backend. Threads may share it.

    bundle: the folder, or an open `Bundle`. backend: `auto` (the first of tensorrt, tensorrt_rtx, onnxruntime_cuda,
    openvino and onnxruntime_cpu that can run here), one of these, or `onnxruntime`; it never changes afterwards.
    device: index of the GPU. precision: `auto`, one that the bundle has, or `bf16`, on openvino, where the bundle's
    parity gate passed for it. num_threads: of the CPU backends, all cores by default. tile_size: the longest side in pixels that
    is run whole, by default the bundle's largest; a longer one is run in overlapping tiles of it, all by the modulation
    of the whole image and matched in tone to a guide, the whole image restored in one run more, reduced where it is
    larger than the bundle's largest size. bypass: False restores every image with the model; by default the path
    `auto` lets those pass that are clean or only blurred, and the path of a condition such as `blur` all of them.
    Raises BundleError, BackendError where the backend cannot run here, and UsageError for an unknown name.
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
        multiple, (least, _, largest) = self.bundle.manifest.size_multiple, self.bundle.manifest.profile.size
        self._sizes = multiple, least, check_tile_size(tile_size, multiple, least, largest)
        self._backend, self.reason = open_backend(backend, self.bundle, Options(device, precision, num_threads))
        self._pipeline = Pipeline(self.bundle, self._backend, bypass)
        # What a backend holds outlives it in part, such as ONNX Runtime's arena: a restorer may be dropped unclosed.
        weakref.finalize(self, self._backend.close).atexit = False

    @property
    def backend(self) -> str:
        """The backend that was taken, such as `onnxruntime_cpu`; `reason` says why."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """The precision of the graphs or engines, such as `fp16`."""
        return self._backend.precision

    @property
    def description(self) -> str:
        """The backend with its version, device and precision, in words."""
        return self._backend.description

    @property
    def conditions(self) -> tuple[str, ...]:
        """What `condition` may be: `auto`, and the degradations that the bundle knows."""
        return self._backend.conditions

    @overload
    def restore(self, image: Source, condition: str = ..., *, details: Literal[True]) -> Restoration: ...

    @overload
    def restore(self, image: Source, condition: str = ..., *, details: Literal[False] = ...) -> Restored: ...

    def restore(self, image: Source, condition: str = "auto", *, details: bool = False) -> Restored | Restoration:
        """Restores one image.

        image: a path, a Pillow image, or an array HW or HWC of uint8, uint16 or float in 0..1. A path or an image
        gives an image, upright, with its colour profile; an array gives an array of the same dtype and layout.
        An image of any size: see `tile` above. details: return a `Restoration`, which has the image's bypass share.
        Raises ImageError for what is no image, and where half precision overflows on it; UsageError for an unknown
        condition.
        """
        self.check_condition(condition)
        (restored,) = self._run_batch([self.prepare(image, condition)], condition)
        if isinstance(restored, ImageError):
            raise restored
        return restored if details else restored.image

    def restore_many(
        self,
        images: Iterable[Source],
        condition: str = "auto",
        batch_size: int = 1,
        *,
        return_errors: bool = False,
        details: bool = False,
    ) -> Iterator[Any]:
        """Restores images one after the other, lazily and in order.

        Neighbours that pad to the same size run together, at most `batch_size` and never more than the bundle takes.
        A bad image raises its ImageError when its turn comes, or is given in its place with `return_errors`. Gives
        what `restore` gives.
        """
        self.check_condition(condition)
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        most = min(batch_size, self.bundle.manifest.profile.batch[2])
        return _given(self._stream(images, condition, most), return_errors, details)

    def _stream(self, images: Iterable[Source], condition: str, batch_size: int) -> Iterator[Restoration | ImageError]:
        batch: list[Prepared] = []
        for image in images:
            following: Prepared | ImageError
            try:
                following = self.prepare(image, condition)
            except ImageError as error:
                following = error
            fits = isinstance(following, Prepared) and (not batch or following.image.shape == batch[0].image.shape)
            ready: list[Restoration | ImageError] = []
            if batch and (not fits or len(batch) == batch_size):
                ready, batch = self._run_batch(batch, condition), []
            if isinstance(following, Prepared):
                batch.append(following)
            else:
                ready.append(following)
            yield from ready
        if batch:
            yield from self._run_batch(batch, condition)

    def warmup(self, condition: str = "auto", size: tuple[int, int] | None = None, batch_size: int = 1) -> None:
        """Opens a condition's path before its first image: what that would wait for otherwise, once.

        Reads, hashes, merges, compiles or deserialises; runs no image. size: (height, width) in px of the images to
        come, by default the bundle's usual one; openvino alone has to know it, and compiles all but the UNet anew
        for others. Raises UsageError for an unknown condition and a size or batch_size below 1, and as the bundle and
        the backend do.
        """
        self.check_condition(condition)
        components, profile, tile = self.bundle.manifest.components, self.bundle.manifest.profile, self._sizes[2]
        size = size or (profile.size[1], profile.size[1])
        if batch_size < 1 or min(size) < 1:
            raise UsageError(f"batch_size and size must be at least 1, not {batch_size} and {size}")
        batch, (height, width) = (
            min(batch_size, profile.batch[2]),
            (min(with_margins(side, *self._sizes), tile) for side in size),
        )
        with self._backend.chain((batch, 3, height, width)):
            path = {
                component: tuple(spec.sized(batch, height, width) for spec in components[component].inputs)
                for component in self._pipeline.path(condition)
            }
            self._backend.open(path, None if condition == "auto" else condition)

    def check_condition(self, condition: str) -> None:
        """Raises UsageError, with the valid names, for a condition that this backend cannot run."""
        if condition not in self.conditions:
            raise unknown("condition", condition, self.conditions)

    def prepare(self, pixels: Source, condition: str = "auto") -> Prepared:
        """Reads and pads an image; takes its crops where the MFM or the gate sees them. Raises ImageError."""
        loaded = read(pixels)
        sides = loaded.pixels.shape[:2]
        height, width = (with_margins(side, *self._sizes) for side in sides)
        padded = pad(loaded.pixels, height, width, (height - sides[0]) // 2, (width - sides[1]) // 2)
        image = np.ascontiguousarray(padded.transpose(2, 0, 1))
        rule, seen = self.bundle.manifest.crops, self._pipeline.sees_crops(condition)
        return Prepared(loaded, image, crops(loaded.pixels, rule.count, rule.size) if seen else None)

    def _run_batch(self, batch: list[Prepared], condition: str) -> list[Restoration | ImageError]:
        images = np.stack([each.image for each in batch])
        taken = [each.crops for each in batch if each.crops is not None]
        restored, shares = self._run(images, np.stack(taken) if taken else None, condition)
        results: list[Restoration | ImageError] = []
        for each, image, share in zip(batch, restored, shares, strict=True):
            if not np.isfinite(image).all():
                overflow = (
                    f"{self.description} gave values that are no numbers, as an overflow in half precision does; "
                    "try precision fp32, and rebuild the bundle with more fp32 islands"
                )
                results.append(ImageError(overflow))
                continue
            results.append(Restoration(each.finish(image), float(share)))
        return results

    def _run(self, images: np.ndarray, crops: np.ndarray | None, condition: str) -> tuple[np.ndarray, np.ndarray]:
        """(restored images, bypass shares [B]) for images of any size: larger ones run in tiles of one decision."""
        decisions = self.decide(len(images), crops, condition)
        shares = decisions["share"][:, 0] if "share" in decisions else np.zeros(len(images))

        def restore(part: np.ndarray) -> np.ndarray:
            return self.run_components(part, None, condition, decisions=decisions)

        if max(images.shape[2:]) <= self._sizes[2]:
            return restore(images), shares
        guide = self.guide(images, restore) if shares.min() < PASSED else None
        return restore_tiles(images, self._sizes[2], restore, guide), shares

    def guide(self, images: np.ndarray, restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Restore padded images [B, 3, H, W] that are larger than a tile in one run: see `tiling.restore_guide`."""
        return restore_guide(images, restore, *self._sizes, self.bundle.manifest.profile.size[2])

    def decide(self, batch: int, crops: np.ndarray | None, condition: str) -> dict[str, np.ndarray]:
        """What belongs to each of `batch` images as a whole, decided from its crops: see `Pipeline.decide`."""
        self.check_condition(condition)
        return self._pipeline.decide(batch, crops, condition)

    def run_components(
        self,
        images: np.ndarray,
        crops: np.ndarray | None = None,
        condition: str = "auto",
        observe: Observer | None = None,
        *,
        decisions: Decisions | None = None,
    ) -> np.ndarray:
        """The pipeline on padded images; the step below `restore`, for benchmarks and tests: see `Pipeline.run`."""
        self.check_condition(condition)
        return self._pipeline.run(images, crops, condition, observe, decisions=decisions)

    def close(self) -> None:
        """Frees the backend: its sessions, and its memory on the GPU."""
        self._backend.close()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Restorer({str(self.bundle.folder)!r}, backend={self.backend!r}, precision={self.precision!r})"


def _given(results: Iterator[Restoration | ImageError], return_errors: bool, details: bool) -> Iterator[Any]:
    for result in results:
        if isinstance(result, ImageError) and not return_errors:
            raise result
        yield result if details or isinstance(result, ImageError) else result.image
