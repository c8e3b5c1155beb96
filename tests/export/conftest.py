"""What the tests of the export share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.small_graphs import export_block


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """block.onnx: convolution, group normalisation and attention, in half."""
    return export_block(tmp_path_factory.mktemp("graph") / "block.onnx")
