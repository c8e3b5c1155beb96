"""The perceptual metrics of the paper's tables through pyiqa, which is imported when one of them is asked for.

pyiqa is an optional extra: its licence (PolyForm Noncommercial) allows evaluation but not every use, it brings
torchvision, and it downloads the weights of a metric when that metric is first made.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dod.errors import DataError
from dod.evaluation.metrics import Metric

__all__ = ["PERCEPTUAL", "PerceptualMetric", "open_metric"]

RGB = "RGB in 0..1, float32"
SET = "uint8 RGB, each channel reduced to 299x299 by Pillow's bicubic filter (clean-fid)"

PERCEPTUAL: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("lpips", "LPIPS", "pair", False, 4, RGB),
        Metric("lpips-vgg", "LPIPS-VGG", "pair", False, 4, RGB),
        Metric("dists", "DISTS", "pair", False, 4, RGB),
        Metric("fid", "FID", "set", False, 2, SET),
        Metric("niqe", "NIQE", "output", False, 4, "Y of YIQ in 0..255, rounded, float64"),
        Metric("niqe_matlab", "NIQE-MATLAB", "output", False, 4, "Y of YIQ in 0..255, rounded, float64"),
        Metric("musiq", "MUSIQ", "output", True, 2, RGB),
        Metric("musiq-spaq", "MUSIQ-SPAQ", "output", True, 2, RGB),
        Metric("maniqa", "MANIQA", "output", True, 4, RGB),
        Metric("maniqa-pipal", "MANIQA-PIPAL", "output", True, 4, RGB),
        Metric("clipiqa", "CLIPIQA", "output", True, 4, RGB),
        Metric("clipiqa+", "CLIPIQA+", "output", True, 4, RGB),
    )
}


@dataclass(frozen=True)
class PerceptualMetric:
    """A metric of pyiqa, ready to run. `network` is what `pyiqa.create_metric` made."""

    metric: Metric
    network: Any
    settings: Mapping[str, Any]
    device: str

    def of_image(self, output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        """The value of one output [H, W, 3] and its truth, or of the output alone. Raises DataError."""
        pair = (output, truth) if self.metric.sees == "pair" else (output,)
        return self._run(*(_tensor(each) for each in pair))

    def of_sets(self, outputs: Path, truths: Path) -> float:
        """The distance between all images below two folders. Raises DataError."""
        return self._run(str(outputs), str(truths), num_workers=0, verbose=False)

    def _run(self, *inputs: Any, **options: Any) -> float:
        try:
            return float(self.network(*inputs, **options))
        except Exception as error:  # pyiqa answers images that are too small, and the like, with any exception
            raise DataError(f"pyiqa's {self.metric.name} failed: {_short(error)}") from error


def open_metric(metric: Metric, device: str = "cpu") -> PerceptualMetric:
    """Makes a metric of pyiqa, which may download its weights.

    Raises DataError where pyiqa cannot be imported, does not have the metric, or cannot have its weights.
    """
    pyiqa = _pyiqa(metric.name)
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from torch.hub import get_dir

    if metric.name not in DEFAULT_CONFIGS:
        raise DataError(f"pyiqa {pyiqa.__version__} has no metric {metric.name!r}: pip install -e '.[eval-iqa]'")
    try:
        with redirect_stdout(sys.stderr):  # pyiqa prints what it downloads; stdout is for the table
            network = pyiqa.create_metric(metric.name, device=device)
    except ImportError as error:
        raise DataError(
            f"{metric.name} needs more than pyiqa ({_short(error)}): pip install -e '.[eval-iqa]'"
        ) from error
    except Exception as error:  # what a failed download raises depends on the metric: URL, hub and archive errors
        raise DataError(
            f"pyiqa {pyiqa.__version__} cannot make {metric.name}: {_short(error)}. It downloads weights when a metric "
            f"is first made: do that once where there is a network, and copy {get_dir()} here"
        ) from error
    options = {key: value for key, value in DEFAULT_CONFIGS[metric.name]["metric_opts"].items() if key != "type"}
    settings = {"variant": f"pyiqa {metric.name}", "options": options, "library": f"pyiqa {pyiqa.__version__}"}
    return PerceptualMetric(metric, network, settings, device)


def _pyiqa(name: str) -> ModuleType:
    try:
        import pyiqa
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another torch build raises RuntimeError
        raise DataError(
            f"{name} needs pyiqa, which cannot be imported ({_short(error)}): pip install -e '.[eval-iqa]', in an "
            "environment whose torchvision was built for its torch"
        ) from error
    return pyiqa


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _tensor(image: NDArray[np.uint8]) -> Any:
    """uint8 [H, W, 3] -> float32 [1, 3, H, W] in 0..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).float() / 255
