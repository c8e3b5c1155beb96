"""Perceptual metrics of the paper's tables, computed by pyiqa.

pyiqa is an optional extra and imported on use: its license (PolyForm Noncommercial) does not allow every use, it
requires torchvision, and it downloads the weights of a metric on first use.
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

from dod.data.images import Pixels
from dod.errors import DataError
from dod.evaluation.metrics import Metric

__all__ = ["PERCEPTUAL", "PerceptualMetric", "open_metric"]

RGB = "RGB in 0..1, float32"
"""Color space of metrics on RGB images."""
SET = "uint8 RGB, each channel reduced to 299x299 by Pillow's bicubic filter (clean-fid)"
"""Color space and size of images for metrics of sets."""

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
"""Perceptual metrics by name."""


@dataclass(frozen=True)
class PerceptualMetric:
    """A metric of pyiqa that is ready to run.

    Attributes:
        metric: its description.
        network: object that `pyiqa.create_metric` returned.
        settings: exact variant, as JSON values.
        device: device it runs on.
    """

    metric: Metric
    network: Any
    settings: Mapping[str, Any]
    device: str

    def of_image(self, output: Pixels, truth: Pixels) -> float:
        """Compute the metric of one image.

        Args:
            output: restored image, uint8 [H, W, 3].
            truth: clean image, uint8 [H, W, 3]; unused by metrics of an output alone.

        Returns:
            The value.

        Raises:
            DataError: pyiqa fails.
        """
        pair = (output, truth) if self.metric.sees == "pair" else (output,)
        return self._run(*(_tensor(each) for each in pair))

    def of_sets(self, outputs: Path, truths: Path) -> float:
        """Compute the metric of all images below two folders.

        Args:
            outputs: folder of restored images.
            truths: folder of clean images.

        Returns:
            The value.

        Raises:
            DataError: pyiqa fails.
        """
        return self._run(str(outputs), str(truths), num_workers=0, verbose=False)

    def _run(self, *inputs: Any, **options: Any) -> float:
        try:
            return float(self.network(*inputs, **options))
        except Exception as error:  # pyiqa raises all kinds of exceptions, for example for images that are too small
            raise DataError(f"pyiqa's {self.metric.name} failed: {_short(error)}") from error


def open_metric(metric: Metric, device: str = "cpu") -> PerceptualMetric:
    """Load a metric of pyiqa, which may download its weights.

    Args:
        metric: the metric.
        device: device to run it on.

    Returns:
        The metric.

    Raises:
        DataError: pyiqa cannot be imported, does not have the metric, or cannot load its weights.
    """
    pyiqa = _pyiqa(metric.name)
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from torch.hub import get_dir

    if metric.name not in DEFAULT_CONFIGS:
        raise DataError(f"pyiqa {pyiqa.__version__} has no metric {metric.name!r}: pip install -e '.[eval-iqa]'")
    try:
        with redirect_stdout(sys.stderr):  # pyiqa reports downloads on stdout, which is for the table
            network = pyiqa.create_metric(metric.name, device=device)
    except ImportError as error:
        raise DataError(
            f"{metric.name} needs more than pyiqa ({_short(error)}): pip install -e '.[eval-iqa]'"
        ) from error
    except Exception as error:  # a failed download raises URL, hub or archive errors, depending on the metric
        raise DataError(
            f"pyiqa {pyiqa.__version__} cannot load {metric.name}: {_short(error)}. It downloads weights at first "
            f"use of a metric: do that on a machine with a network connection, and copy {get_dir()} here"
        ) from error
    options = {key: value for key, value in DEFAULT_CONFIGS[metric.name]["metric_opts"].items() if key != "type"}
    settings = {"variant": f"pyiqa {metric.name}", "options": options, "library": f"pyiqa {pyiqa.__version__}"}
    return PerceptualMetric(metric, network, settings, device)


def _pyiqa(name: str) -> ModuleType:
    try:
        import pyiqa
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision built for another torch raises RuntimeError
        raise DataError(
            f"{name} needs pyiqa, which cannot be imported ({_short(error)}): pip install -e '.[eval-iqa]', in an "
            "environment whose torchvision matches its torch"
        ) from error
    return pyiqa


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _tensor(image: Pixels) -> Any:
    """Convert uint8 [H, W, 3] to float32 [1, 3, H, W] in 0 to 1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).float() / 255
