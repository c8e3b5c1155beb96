"""The fixed surroundings of the engine builder's processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.reproducible import builder_environment, fixed_addresses, fixed_length_links

PERSONALITY = Path("/proc/self/personality")


def flags_of_a_child() -> int:
    code = f"print(open({str(PERSONALITY)!r}).read())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout, 16)


@pytest.mark.skipif(not PERSONALITY.exists(), reason="no Linux")
def test_children_get_fixed_addresses_inside_the_block() -> None:
    before = flags_of_a_child()
    with fixed_addresses():
        inside = flags_of_a_child()
    assert flags_of_a_child() == before
    if inside == before:
        pytest.skip("the system does not allow it")
    assert inside == before | 0x0040000


def test_links_of_any_folders_have_one_length(tmp_path: Path) -> None:
    lengths = set()
    for name in ("a", "a much longer name"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_text(name)
        with fixed_length_links(tmp_path, folder) as (_, link):
            assert (link / "file").read_text() == name
            lengths.add(len(str(link.absolute())))
        assert not link.exists() and (folder / "file").exists()
    assert len(lengths) == 1


def test_the_builders_environment_does_not_depend_on_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    before = builder_environment()
    monkeypatch.setenv("OLDPWD", "/somewhere")
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another test")
    assert builder_environment() == before and "PATH" in before
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/tensorrt")
    assert builder_environment()["LD_LIBRARY_PATH"] == "/opt/tensorrt"
