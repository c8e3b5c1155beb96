"""Toy bundles, written once for all tests that only read them, and an image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import LOGGERS
from tests.runtime.toy_bundle import OPENVINO, write_toy_bundle


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a command sets for its whole process: log levels and the handler."""
    handlers = list(logging.root.handlers)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    yield
    logging.root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose conditions change the image visibly."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle"))


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that returns every image unchanged."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("identity") / "bundle", effect=0, precisions=["fp32"]))


@pytest.fixture(scope="session")
def ov_toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy with the target openvino, too."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("openvino") / "bundle", targets=OPENVINO))


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy whose gate lets bright images bypass the model; on its condition `noise` all images do."""
    folder = tmp_path_factory.mktemp("gated") / "toy"
    return Bundle.open(write_toy_bundle(folder, effect=8, targets=OPENVINO, shares={"noise": 1.0}))


@pytest.fixture(scope="session")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy `gated` without its gate."""
    return Bundle.open(write_toy_bundle(tmp_path_factory.mktemp("ungated") / "toy", effect=8))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder of a bundle that a test may damage."""
    return write_toy_bundle(tmp_path / "bundle", precisions=["fp32"])


@pytest.fixture
def photo() -> np.ndarray:
    """uint8 [60, 90, 3]: gradients and an edge, so that shifted or mirrored results are visible."""
    rows, columns = np.mgrid[0:60, 0:90]
    image = np.stack([rows * 4, columns * 2, 255 - rows - columns], axis=-1)
    image[20:30, 10:70] = (250, 20, 120)
    return image.astype(np.uint8)
