"""Run examples as a reader does, with the console scripts of this checkout on the path."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Example = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the console scripts that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("bin")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        module, _, function = target.partition(":")
        script = folder / name
        script.write_text(
            # like pip's; worker processes import it again, so the call needs the guard
            f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
            f"if __name__ == '__main__':\n    sys.exit({function}())\n"
        )
        script.chmod(0o755)
    return folder


@pytest.fixture
def run_example(scripts: Path, tmp_path: Path) -> Example:
    """Function that runs a script of an example folder in `tmp_path` and returns the finished process."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        path = ROOT / "examples" / script
        start = [sys.executable] if path.suffix == ".py" else ["bash"]
        environment = {**os.environ, "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]])}
        command = [*start, str(path), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)

    return run
