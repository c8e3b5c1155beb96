"""The public class: a bundle and a backend, pictures in, restored pictures out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from .backends import Options, open_backend
from .bundle import Bundle
from .errors import PictureError, UsageError, unknown
from .geometry import crops, pad, with_margins
from .image import Picture, Source, read
from .tiling import check_tile, restore_tiles

__all__ = ["DYNAMIC", "MERGED", "Observer", "Prepared", "Restored", "Restorer"]

Restored: TypeAlias = Image.Image | np.ndarray
Observer: TypeAlias = Callable[[str, float], None]

DYNAMIC = ("mfm", "encoder", "unet_dynamic", "decoder")
"""The components of the path `auto`, in order."""
MERGED = ("encoder", "unet_merged", "decoder")
"""The components of a condition's path, in order."""


@dataclass(frozen=True)
class Prepared:
    """A picture that is ready to run. image: float32 [3, H, W] in [-1, 1]. crops: float32 [K, 3, R, R].

    The picture lies in the middle of `image`, between reflected margins (`geometry.with_margins`).
    """

    picture: Picture
    image: np.ndarray
    crops: np.ndarray | None

    def finish(self, restored: np.ndarray) -> Restored:
        """Cuts the margins off a restored image, float32 [3, H, W] in [-1, 1], and gives it the picture's own kind."""
        height, width = self.picture.pixels.shape[:2]
        top, left = (restored.shape[1] - height) // 2, (restored.shape[2] - width) // 2
        return self.picture.finish(restored[:, top : top + height, left : left + width].transpose(1, 2, 0))


class Restorer:
    """Restores pictures with one bundle on one backend. Threads may share it.

    bundle: the folder, or an open `Bundle`. backend: `auto` (the first of tensorrt, tensorrt_rtx, onnxruntime_cuda,
    openvino and onnxruntime_cpu that can run here), one of these, or `onnxruntime`; it never changes afterwards.
    device: index of the GPU. precision: `auto`, one that the bundle has, or `bf16`, on openvino, where the bundle's
    parity gate passed for it. threads: of the CPU backends, all cores by default. tile: the longest side in pixels that
    is run whole, by default the bundle's largest; a longer one is run in overlapping tiles of it, all by the modulation
    of the whole picture and matched in tone to a guide, the whole picture reduced to the shape of a tile. Smaller tiles
    take less memory and see less of the picture.
    Raises BundleError, BackendError where the backend cannot run here, and UsageError for an unknown name.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str = "auto",
        device: int = 0,
        precision: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        multiple, (least, _, largest) = self.bundle.manifest.size_multiple, self.bundle.manifest.profile.size
        self._sizes = multiple, least, check_tile(tile, multiple, least, largest)
        self._backend, self.reason = open_backend(backend, self.bundle, Options(device, precision, threads))
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

    def restore(self, picture: Source, condition: str = "auto") -> Restored:
        """Restores one picture.

        picture: a path, a Pillow image, or an array HW or HWC of uint8, uint16 or float in 0..1. A path or an image
        gives an image, upright, with its colour profile; an array gives an array of the same dtype and layout.
        A picture of any size: see `tile` above.
        Raises PictureError for what is no picture, and where half precision overflows on it; UsageError for an unknown
        condition.
        """
        self.check_condition(condition)
        (restored,) = self._run_batch([self.prepare(picture, condition)], condition)
        if isinstance(restored, PictureError):
            raise restored
        return restored

    @overload
    def restore_many(
        self, pictures: Iterable[Source], condition: str = ..., batch_size: int = ..., *, return_errors: Literal[True]
    ) -> Iterator[Restored | PictureError]: ...

    @overload
    def restore_many(
        self, pictures: Iterable[Source], condition: str = ..., batch_size: int = ...
    ) -> Iterator[Restored]: ...

    def restore_many(
        self,
        pictures: Iterable[Source],
        condition: str = "auto",
        batch_size: int = 1,
        *,
        return_errors: bool = False,
    ) -> Iterator[Restored | PictureError]:
        """Restores pictures one after the other, lazily and in order.

        Neighbours that pad to the same size run together, at most `batch_size` and never more than the bundle takes.
        A bad picture raises its PictureError when its turn comes, or is given in its place with `return_errors`.
        """
        self.check_condition(condition)
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        return self._stream(pictures, condition, min(batch_size, self.bundle.manifest.profile.batch[2]), return_errors)

    def _stream(
        self, pictures: Iterable[Source], condition: str, batch_size: int, return_errors: bool
    ) -> Iterator[Restored | PictureError]:
        batch: list[Prepared] = []
        for picture in pictures:
            following: Prepared | PictureError
            try:
                following = self.prepare(picture, condition)
            except PictureError as error:
                following = error
            fits = isinstance(following, Prepared) and (not batch or following.image.shape == batch[0].image.shape)
            ready: list[Restored | PictureError] = []
            if batch and (not fits or len(batch) == batch_size):
                ready, batch = self._run_batch(batch, condition), []
            if isinstance(following, Prepared):
                batch.append(following)
            else:
                ready.append(following)
            yield from _given(ready, return_errors)
        if batch:
            yield from _given(self._run_batch(batch, condition), return_errors)

    def warm_up(self, condition: str = "auto", size: tuple[int, int] | None = None, batch_size: int = 1) -> None:
        """Opens a condition's path before its first picture: what that would wait for otherwise, once.

        Reads, hashes, merges, compiles or deserialises; runs no picture. size: (height, width) in px of the pictures to
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
                for component in (DYNAMIC if condition == "auto" else MERGED)
            }
            self._backend.open(path, None if condition == "auto" else condition)

    def check_condition(self, condition: str) -> None:
        """Raises UsageError, with the valid names, for a condition that this backend cannot run."""
        if condition not in self.conditions:
            raise unknown("condition", condition, self.conditions)

    def prepare(self, picture: Source, condition: str = "auto") -> Prepared:
        """Reads and pads a picture; takes the MFM's crops of it where the condition is `auto`. Raises PictureError."""
        loaded = read(picture)
        sides = loaded.pixels.shape[:2]
        height, width = (with_margins(side, *self._sizes) for side in sides)
        padded = pad(loaded.pixels, height, width, (height - sides[0]) // 2, (width - sides[1]) // 2)
        image = np.ascontiguousarray(padded.transpose(2, 0, 1))
        rule = self.bundle.manifest.crops
        return Prepared(loaded, image, crops(loaded.pixels, rule.count, rule.size) if condition == "auto" else None)

    def _run_batch(self, batch: list[Prepared], condition: str) -> list[Restored | PictureError]:
        images = np.stack([each.image for each in batch])
        taken = [each.crops for each in batch if each.crops is not None]
        restored = self._run_tiles(images, np.stack(taken) if taken else None, condition)
        results: list[Restored | PictureError] = []
        for each, image in zip(batch, restored, strict=True):
            if not np.isfinite(image).all():
                overflow = (
                    f"{self.description} gave values that are no numbers, as an overflow in half precision does; "
                    "try precision fp32, and rebuild the bundle with more fp32 islands"
                )
                results.append(PictureError(overflow))
                continue
            results.append(each.finish(image))
        return results

    def _run_tiles(self, images: np.ndarray, crops: np.ndarray | None, condition: str) -> np.ndarray:
        """As `run_components`, for images of any size: the MFM runs once, the rest for a guide and for each tile."""
        height, width = images.shape[2:]
        if max(height, width) <= self._sizes[2]:
            return self.run_components(images, crops, condition)
        modulation = None if crops is None else self._modulation(crops)

        def restore(part: np.ndarray) -> np.ndarray:
            return self.run_components(part, None, condition, modulation=modulation)

        return restore_tiles(images, self._sizes[2], restore)

    def _modulation(self, crops: np.ndarray) -> np.ndarray:
        with self._backend.chain(crops.shape):
            return self._backend.to_numpy(self._backend.run("mfm", {"crops": crops})["modulation"])

    def run_components(
        self,
        images: np.ndarray,
        crops: np.ndarray | None = None,
        condition: str = "auto",
        observe: Observer | None = None,
        *,
        modulation: np.ndarray | None = None,
    ) -> np.ndarray:
        """The chain of components on padded pictures; the step below `restore`, for benchmarks and tests.

        images: float32 [B, 3, H, W] in [-1, 1]. crops: float32 [B, K, 3, R, R], which the condition `auto` needs, or in
        their place modulation: [B, N, 2, r], what the MFM made of them; for other conditions it is not run. Returns
        float32 [B, 3, H, W]. `observe` is called with each component and its seconds on the device; without it nothing
        waits between the components.
        """
        self.check_condition(condition)
        dynamic = condition == "auto"
        if dynamic and crops is None and modulation is None:
            raise UsageError("the condition auto needs crops")
        values: dict[str, object] = {"image": images, "crops": crops, "modulation": modulation}
        with self._backend.chain(images.shape):
            for component in DYNAMIC if dynamic else MERGED:
                if component == "mfm" and modulation is not None:
                    continue
                inputs = {spec.name: values[spec.name] for spec in self.bundle.manifest.components[component].inputs}
                elapsed = self._backend.stopwatch() if observe else None
                values |= self._backend.run(component, inputs, None if dynamic else condition)
                if observe and elapsed:
                    observe(component, elapsed())
            return self._backend.to_numpy(values["image"]).astype(np.float32, copy=False)

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


def _given(results: list[Restored | PictureError], return_errors: bool) -> Iterator[Restored | PictureError]:
    for result in results:
        if isinstance(result, PictureError) and not return_errors:
            raise result
        yield result
