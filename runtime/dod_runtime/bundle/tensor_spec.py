"""Names, dtypes and symbolic shapes of what goes into graphs and comes out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

__all__ = ["TensorSpec", "dimension"]

Positive = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input or output of a graph.

    Attributes:
        name: name in the graph.
        dtype: NumPy's name of the dtype, or one name for each precision.
        shape: dimensions. Each is a number or an expression in `batch`, `height` and `width` (pixels of the image),
            such as `height/8`.
    """

    name: str
    dtype: Mapping[str, str] | str
    shape: tuple[Positive | str, ...]

    def dtype_in(self, precision: str) -> str:
        """Return the dtype in the graphs of a precision.

        Args:
            precision: a precision of the bundle, such as `fp16`.

        Returns:
            NumPy's name of the dtype, such as `float16`.
        """
        return self.dtype if isinstance(self.dtype, str) else self.dtype[precision]

    def sized(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape for a batch of images.

        Args:
            batch: number of images.
            height: height of the images in pixels.
            width: width of the images in pixels.

        Returns:
            The shape in numbers.

        Example:
            >>> TensorSpec("latent", "float32", ("batch", 4, "height/8", "width/8")).sized(1, 512, 768)
            (1, 4, 64, 96)
        """
        known = {"batch": batch, "height": height, "width": width}
        return tuple(dimension(size, known) for size in self.shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the batch and image size that a shape of this tensor belongs to: the inverse of `sized`.

        Args:
            shape: shape of an array for this tensor.

        Returns:
            Those of `batch`, `height` and `width` that the shape depends on.

        Example:
            >>> TensorSpec("latent", "float32", ("batch", 4, "height/8", "width/8")).sizes((1, 4, 64, 96))
            {'batch': 1, 'height': 512, 'width': 768}
        """
        parts = [str(size).partition("/") for size in self.shape]
        return {
            name: length * int(divisor or 1)
            for (name, _, divisor), length in zip(parts, shape, strict=True)
            if not name.isdecimal()
        }


def dimension(size: int | str, known: Mapping[str, int]) -> int:
    """Evaluate a dimension of a `TensorSpec`.

    Args:
        size: a number, a name, or a name divided by a number.
        known: values of the names.

    Returns:
        The dimension as a number.

    Example:
        >>> [dimension(size, {"batch": 2, "height": 512}) for size in (4, "batch", "height/8")]
        [4, 2, 64]
    """
    if isinstance(size, int):
        return size
    name, _, divisor = size.partition("/")
    return known[name] // int(divisor or 1)
