"""The form of the examples: numbered folders, short scripts, READMEs that show the command."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
MAX_LINES = 40


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_is_a_short_script_with_a_readme(folder: Path) -> None:
    (script,) = [path for path in folder.iterdir() if path.suffix in (".py", ".sh")]
    assert len(script.read_text().splitlines()) <= MAX_LINES
    assert f"examples/{folder.name}/{script.name}" in (folder / "README.md").read_text()


def test_the_index_names_every_example_in_order() -> None:
    assert [folder.name[:2] for folder in FOLDERS] == [f"{number:02}" for number in range(1, len(FOLDERS) + 1)]
    index = (EXAMPLES / "README.md").read_text()
    assert all(f"({folder.name}/README.md)" in index for folder in FOLDERS)
    tests = {path.name for path in Path(__file__).parent.glob("test_0*.py")}
    assert tests == {f"test_{folder.name}.py" for folder in FOLDERS}, "every example has a test"
