"""The example that restores a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from tests.examples.conftest import Example

SCRIPT = "01_restore_a_folder/restore_folder.py"


def test_images_are_restored_and_a_broken_file_is_reported(
    run_example: Example, tiny_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(photographs, images)
    (images / "broken.png").write_bytes(b"no image")
    with Image.open(images / "noise.png") as noise:
        noise.convert("RGB").save(images / "noise.jpg")
    done = run_example(SCRIPT, images, tmp_path / "out", "--bundle", tiny_bundle)
    assert done.returncode == 1, done.stderr
    assert "broken.png" in done.stdout and done.stdout.startswith("backend: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"haze.png", "noise.jpg", "noise.png"}
    with Image.open(tmp_path / "out" / "haze.png") as restored, Image.open(images / "haze.png") as original:
        assert restored.size == original.size and restored.tobytes() != original.tobytes()


def test_the_images_are_not_overwritten(run_example: Example, photographs: Path) -> None:
    done = run_example(SCRIPT, photographs, photographs)
    assert done.returncode == 2 and "another folder" in done.stderr
