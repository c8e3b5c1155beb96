"""The example that restores arrays."""

from __future__ import annotations

from pathlib import Path

from tests.examples.conftest import Example


def test_arrays_keep_dtype_and_shape(run_example: Example, tiny_bundle: Path, photographs: Path) -> None:
    done = run_example(
        "02_restore_arrays/restore_arrays.py", "--image", photographs / "noise.png", "--bundle", tiny_bundle
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, shape in zip(lines, ("uint8 [136, 200, 3]", "float32 [136, 200, 3]", "uint8 [136, 200]"), strict=True):
        assert shape in line
