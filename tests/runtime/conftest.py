"""Toy bundles, written once for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dod_runtime.bundle.bundle import Bundle
from tests.runtime.toy_bundle import OPENVINO, write_toy_bundle


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose conditions change the image visibly."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle"))


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that gives back every image as it was."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("identity") / "bundle", effect=0, precisions=["fp32"]))


@pytest.fixture(scope="session")
def ov_toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The first for OpenVINO too."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("openvino") / "bundle", targets=OPENVINO))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder of a bundle that a test may spoil."""
    return write_toy_bundle(tmp_path / "bundle", precisions=["fp32"])


@pytest.fixture
def photo() -> np.ndarray:
    """uint8 [60, 90, 3]: gradients and an edge, so that a shifted or mirrored result shows."""
    rows, columns = np.mgrid[0:60, 0:90]
    image = np.stack([rows * 4, columns * 2, 255 - rows - columns], axis=-1)
    image[20:30, 10:70] = (250, 20, 120)
    return image.astype(np.uint8)
