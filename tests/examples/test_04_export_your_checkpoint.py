"""The example that exports a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod_runtime import Bundle
from tests.conftest import SIZES
from tests.examples.conftest import Example


@pytest.mark.slow
def test_a_checkpoint_becomes_a_bundle_that_restores(
    run_example: Example, tiny_checkpoint: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    options = "--conditions", "noise", "--images", photographs, *SIZES
    done = run_example("04_export_your_checkpoint/export.sh", tiny_checkpoint, out, *options)
    assert done.returncode == 0, done.stderr
    assert set(Bundle.open(out).manifest.conditions) == {"noise"}
    assert "fp32" in done.stdout and out.with_name("bundle-noise.png").is_file()
