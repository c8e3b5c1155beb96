"""Hashes of source code, room by room."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from export import sources
from export.sources import MODEL, hash_sources, package_sources, room_sources
from export.steps import engines, parity, precision, simplification
from tests.conftest import ROOT


def names(room: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in room_sources(room)}


def test_rooms() -> None:
    assert {"dod/__init__.py", "dod/config.py"} <= names("dod/*.py")
    assert not any(name.count("/") > 1 for name in names("dod/*.py"))
    assert {"export/graphs/__init__.py", "export/graphs/trace.py"} <= names("export/graphs")
    assert names("export/steps/parity.py") == {"export/steps/parity.py"}
    inside = {"runtime/dod_runtime/restorer.py", "runtime/dod_runtime/backends/openvino/backend.py"}
    assert inside <= names("dod_runtime")
    for absent in ("export/no_room", "export/no_module.py", "no_package"):
        with pytest.raises(FileNotFoundError):
            room_sources(absent)


def test_a_change_in_a_room_changes_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "room").mkdir(parents=True)
    for name in ("__init__.py", "top.py", "room/__init__.py", "room/inside.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(sources, "_package_folder", lambda name: package)
    before = hash_sources("package/room"), hash_sources("package/*.py"), hash_sources("package")
    assert len(set(before)) == 3
    (package / "room" / "inside.py").write_text("x = 2\n")
    assert hash_sources("package/room") != before[0] and hash_sources("package") != before[2]
    assert hash_sources("package/*.py") == before[1]
    (package / "room" / "inside.py").write_text("x = 1\n")
    (package / "room" / "inside.py").rename(package / "room" / "renamed.py")
    assert hash_sources("package/room") != before[0]


def test_products_of_an_installation_are_no_sources(tmp_path: Path) -> None:
    """`pip install ./runtime` copies the package into runtime/build/lib."""
    runtime = tmp_path / "runtime"
    ignored = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "runtime", runtime, ignore=ignored)
    before = package_sources(runtime)
    assert {"dod_runtime/bundle/bundle.py", "dod_runtime/backends/onnxruntime.py"} <= {
        path.relative_to(runtime).as_posix() for path in before
    }
    for leftover in ("build/lib/dod_runtime", "build/lib/dod_runtime/backends", "dist", "dod_runtime.egg-info"):
        (runtime / leftover).mkdir(parents=True)
        (runtime / leftover / "__init__.py" if "lib" in leftover else runtime / leftover / "setup.py").touch()
    (runtime / "__pycache__").mkdir()
    (runtime / "__pycache__" / "bundle.py").touch()
    assert package_sources(runtime) == before


@pytest.mark.parametrize("step", [engines, parity, precision, simplification])
def test_every_room_of_a_step_exists(step: ModuleType) -> None:
    assert all(room_sources(room) for room in step.SOURCES)


@pytest.mark.slow
def test_the_rooms_of_the_model_hold_every_module_that_loading_one_imports() -> None:
    code = (
        "import sys, dod.checkpoint;"
        "print([m.__file__ for name, m in sys.modules.items() if name.partition('.')[0] == 'dod'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {Path(file).resolve() for file in ast.literal_eval(done.stdout)}
    assert imported and imported <= {path for room in MODEL for path in room_sources(room)}
