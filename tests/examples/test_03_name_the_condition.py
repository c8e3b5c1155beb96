"""The example that names the condition."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import CONDITIONS
from tests.examples.conftest import Example


def test_every_path_writes_an_image(run_example: Example, tiny_bundle: Path, photographs: Path, tmp_path: Path) -> None:
    arguments = "--image", photographs / "haze.png", "--bundle", tiny_bundle, "--out", tmp_path / "out"
    done = run_example("03_name_the_condition/name_the_condition.py", *arguments)
    assert done.returncode == 0, done.stderr
    paths = {"auto", *CONDITIONS}
    assert {line.split(":")[0] for line in done.stdout.splitlines()} == paths
    contents = {path.stem: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert contents.keys() == paths and len(set(contents.values())) == len(paths), "each path restores differently"
