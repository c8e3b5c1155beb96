"""Images of any size in batches on a pipeline: padded, restored whole or in tiles, and cut to their own size again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .bundle.schema import Manifest
from .condition_path import ConditionPath
from .errors import ImageError
from .image.geometry import crops, pad, with_margins
from .image.read import Source, read
from .image.tiling import check_tile_size, restore_guide, restore_tiles
from .pipeline import Pipeline
from .restoration import PreparedImage, Restoration, Restored

__all__ = ["BatchRunner", "SizeRules"]

BYPASSED = 0.99
"""Bypass share from which tiles are not matched in tone: nearly all of the image is unchanged."""


@dataclass(frozen=True)
class SizeRules:
    """Sizes in px that images are restored in.

    Attributes:
        multiple: heights and widths are multiples of it.
        least: smallest side.
        tile_size: longest side that is restored whole.
        largest: longest side that the bundle takes in one run.
    """

    multiple: int
    least: int
    tile_size: int
    largest: int

    @classmethod
    def of(cls, manifest: Manifest, tile_size: int | None = None) -> SizeRules:
        """Return the rules of a bundle.

        Args:
            manifest: manifest of the bundle.
            tile_size: longest side that is restored whole (default: the largest of the bundle).

        Raises:
            UsageError: the bundle does not take the tile size.
        """
        multiple, (least, _, largest) = manifest.size_multiple, manifest.profile.size
        return cls(multiple, least, check_tile_size(tile_size, multiple, least, largest), largest)

    def padded_side(self, side: int) -> int:
        """Return the side of a padded image, with its margins.

        Args:
            side: side of the image.
        """
        return with_margins(side, self.multiple, self.least, self.tile_size)

    def run_side(self, side: int) -> int:
        """Return the side that the graphs see: that of the padded image, or of a tile of it.

        Args:
            side: side of the image.
        """
        return min(self.padded_side(side), self.tile_size)


class BatchRunner:
    """Runs images of any size on a pipeline. Threads may share it.

    Args:
        pipeline: the components of a bundle on a backend.
        sizes: sizes that images are restored in.
    """

    def __init__(self, pipeline: Pipeline, sizes: SizeRules) -> None:
        self.pipeline, self.sizes = pipeline, sizes

    def prepare(self, source: Source, path: ConditionPath) -> PreparedImage:
        """Read and pad an image, and take the crops that its condition path needs.

        Args:
            source: path, Pillow image or array.
            path: the condition path.

        Raises:
            ImageError: the image cannot be read.
        """
        decoded = read(source)
        sides = decoded.pixels.shape[:2]
        height, width = (self.sizes.padded_side(side) for side in sides)
        padded = pad(decoded.pixels, height, width, (height - sides[0]) // 2, (width - sides[1]) // 2)
        image = np.ascontiguousarray(padded.transpose(2, 0, 1))
        rule = self.pipeline.bundle.manifest.crops
        taken = crops(decoded.pixels, rule.count, rule.size) if self.pipeline.needs_crops(path) else None
        return PreparedImage(decoded, image, taken)

    def stream(
        self, sources: Iterable[Source], path: ConditionPath, batch_size: int
    ) -> Iterator[Restoration[Restored] | ImageError]:
        """Restore images lazily and in order. Consecutive images of one padded size run together.

        Args:
            sources: paths, Pillow images or arrays.
            path: the condition path.
            batch_size: largest number of images that run together.

        Yields:
            The restoration of each image, or the error of a bad image in its place.
        """
        batch: list[PreparedImage] = []
        for source in sources:
            following: PreparedImage | ImageError
            try:
                following = self.prepare(source, path)
            except ImageError as error:
                following = error
            fits = isinstance(following, PreparedImage) and (not batch or following.image.shape == batch[0].image.shape)
            ready: list[Restoration[Restored] | ImageError] = []
            if batch and (not fits or len(batch) == batch_size):
                ready, batch = self.run(batch, path), []
            if isinstance(following, PreparedImage):
                batch.append(following)
            else:
                ready.append(following)
            yield from ready
        if batch:
            yield from self.run(batch, path)

    def run(self, batch: list[PreparedImage], path: ConditionPath) -> list[Restoration[Restored] | ImageError]:
        """Restore a batch.

        Args:
            batch: prepared images of one padded size.
            path: the condition path.

        Returns:
            For each image its restoration, or an error where the result has NaN or infinite values.
        """
        images = np.stack([each.image for each in batch])
        taken = [each.crops for each in batch if each.crops is not None]
        restored, shares = self._run(images, np.stack(taken) if taken else None, path)
        results: list[Restoration[Restored] | ImageError] = []
        for each, image, share in zip(batch, restored, shares, strict=True):
            if np.isfinite(image).all():
                results.append(Restoration(each.finish(image), float(share)))
                continue
            overflow = (
                f"{self.pipeline.backend.info} returned NaN or infinite values, as an overflow in fp16 does: use "
                "precision fp32 on an ONNX Runtime or OpenVINO backend, or rebuild the bundle with more fp32 modules"
            )
            results.append(ImageError(overflow))
        return results

    def _run(self, images: np.ndarray, crops: np.ndarray | None, path: ConditionPath) -> tuple[np.ndarray, np.ndarray]:
        """Return the restored images and their bypass shares `[B]`. Large images run in tiles with one decision."""
        decisions = self.pipeline.decide(len(images), crops, path)
        shares = decisions["share"][:, 0] if "share" in decisions else np.zeros(len(images))

        def restore(part: np.ndarray) -> np.ndarray:
            return self.pipeline.run(part, None, path, decisions=decisions)

        if max(images.shape[2:]) <= self.sizes.tile_size:
            return restore(images), shares
        guide = self.guide(images, restore) if shares.min() < BYPASSED else None
        return restore_tiles(images, self.sizes.tile_size, restore, guide), shares

    def guide(self, images: np.ndarray, restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Restore padded images that are larger than a tile in one run, as a guide for the tone of their tiles.

        Args:
            images: float32 `[B, 3, H, W]` in [-1, 1].
            restore: function that restores such images.

        Returns:
            The guide; see `image.tiling.restore_guide`.
        """
        sizes = self.sizes
        return restore_guide(images, restore, sizes.multiple, sizes.least, sizes.tile_size, sizes.largest)
