"""TensorBoard's scalars and sample images, if that library is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor
from tqdm import tqdm

__all__ = ["Board"]


class Board:
    """Writer of a run's curves and images, as a context manager.

    Args:
        folder: folder that `tensorboard --logdir` shows.
        enabled: write; otherwise every method does nothing.
    """

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self._writer = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            tqdm.write(f"no TensorBoard curves ({error}): pip install -e '.[train]' to write them")
        else:
            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve.

        Args:
            step: step of the point.
            values: values by the name of the curve; "step" is ignored.
        """
        if self._writer is not None:
            for name, value in values.items():
                if name != "step":
                    self._writer.add_scalar(name, value, step)

    def images(self, step: int, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Add sample images.

        Args:
            step: step that they belong to.
            make: returns images [3, H, W] in -1 to 1 by name; called only if they are written.
        """
        if self._writer is not None:
            for name, image in make().items():
                self._writer.add_image(name, (image.float().clamp(-1, 1) + 1) / 2, step)
