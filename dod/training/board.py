"""TensorBoard's scalars and sample images, where that library is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor
from tqdm import tqdm


class Board:
    """Writes a run's figures to a folder that `tensorboard --logdir` shows; does nothing where it is not `wanted`."""

    def __init__(self, folder: Path, wanted: bool = True) -> None:
        self._writer = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            tqdm.write(f"no TensorBoard figures ({error}): pip install -e '.[train]' to have them")
        else:
            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        if self._writer is not None:
            for name, value in values.items():
                if name != "step":
                    self._writer.add_scalar(name, value, step)

    def images(self, step: int, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Images [3, H, W] in [-1, 1], made only where they are shown."""
        if self._writer is not None:
            for name, image in make().items():
                self._writer.add_image(name, (image.float().clamp(-1, 1) + 1) / 2, step)
