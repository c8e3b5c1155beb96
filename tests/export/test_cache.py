"""A build resumes: what it keeps, what it makes again and why, and what an interruption leaves."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from dod_runtime.bundle.bundle import MANIFEST
from dod_runtime.errors import UsageError
from dod_runtime.files import current_umask
from export import cache as cache_module
from export.cache import BuildCache, Entry, hash_sources, key_of, package_sources
from export.preflight import MODEL_MODULES, ROOT
from export.steps import engines as engine_step
from export.steps import parity as parity_step
from export.steps import precision as precision_step
from export.steps import simplify as simplify_step

INPUTS = {"base": "abc", "size": (256, 512), "settings": {"step": {"timestep": 999}}}
NAME = "onnx/fp32/mfm.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "mini"


def make(cache: BuildCache, inputs: dict | None = None, text: str = "graph", name: str = NAME) -> bool:
    """Whether the file was made, rather than kept."""

    def maker(path: Path) -> dict[str, int]:
        path.write_text(text)
        return {"layers": 3}

    return cache.make(name, INPUTS if inputs is None else inputs, maker)[1]


def bundle_of_before(out: Path, text: str = "graph") -> None:
    """What an earlier build left at `out`, as far as a workshop looks at it."""
    cache = BuildCache(out)
    make(cache, text=text)
    (out / NAME).parent.mkdir(parents=True)
    (cache.folder / NAME).replace(out / NAME)
    (out / MANIFEST).write_text(json.dumps({"build": {name: asdict(entry) for name, entry in cache.used.items()}}))
    (cache.root / "ledger.json").unlink()


def test_made_once_and_kept_by_the_next_run(out: Path) -> None:
    cache = BuildCache(out)
    assert make(cache) and cache.reasons[NAME] == "stale: not built yet"
    assert not make(cache, text="never written")
    again = BuildCache(out)
    assert not make(again, text="never written")
    assert again.reasons[NAME] == "fresh: same inputs (base, size, settings)"
    assert (
        again.path(NAME).read_text() == "graph"
        and again.path(NAME).parent == out.parent / "mini.partial/files/onnx/fp32"
    )
    entry = again.used[NAME]
    assert entry.facts == {"layers": 3} and entry.bytes == 5 and entry == cache.used[NAME]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({**INPUTS, "base": "abd"}, 'stale: base was "abc", is "abd"'),
        ({**INPUTS, "size": (256, 1024)}, "stale: size was [256, 512], is [256, 1024]"),
        ({**INPUTS, "opset": 20}, "stale: opset was null, is 20"),
        ({"base": "abc", "settings": INPUTS["settings"]}, "stale: size was [256, 512], is null"),
        ({**INPUTS, "settings": {"step": {"timestep": 9}}}, "stale: settings: step: timestep was 999, is 9"),
        ({**INPUTS, "base": "c" * 64}, f'stale: base was "abc", is "{"c" * 17}...{"c" * 17}"'),
    ],
)
def test_a_change_of_inputs_makes_it_again_and_is_named(out: Path, inputs: dict, reason: str) -> None:
    make(BuildCache(out))
    cache = BuildCache(out)
    assert make(cache, inputs, "other")
    assert cache.reasons[NAME] == reason and cache.path(NAME).read_text() == "other"
    assert not make(BuildCache(out), inputs)


@pytest.mark.parametrize("damage", ["grapH", "graph and more", None])
def test_a_damaged_file_is_made_again(out: Path, damage: str | None) -> None:
    make(BuildCache(out))
    cache = BuildCache(out)
    cache.path(NAME).unlink() if damage is None else cache.path(NAME).write_text(damage)
    assert make(cache) and cache.reasons[NAME] == "stale: the file is missing or was changed"
    assert cache.path(NAME).read_text() == "graph" and not make(BuildCache(out))


def test_what_was_not_touched_since_is_not_read_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_of_before(out)
    read: list[Path] = []
    single = cache_module.hash_file
    monkeypatch.setattr(cache_module, "hash_file", lambda path: read.append(path) or single(path))
    with BuildCache(out) as cache:
        hash_ahead(cache)
        assert not make(cache) and not read
    os.utime(out / NAME, ns=(1, 1))  # as in a bundle that was copied
    with BuildCache(out) as cache:
        hash_ahead(cache)
        assert not make(cache) and read == [out / NAME]
        assert cache.used[NAME].mark[-1] == 1
    os.utime(out / NAME, ns=(10**9, 10**9))
    with BuildCache(out) as cache:
        assert not make(cache) and cache.used[NAME].mark == [], "no mark where a file system counts in seconds"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("damage", [None, "grapf", "gone"])
@pytest.mark.parametrize("copied", [False, True])
def test_hashed_ahead_is_hashed_as_it_is(out: Path, when: str, damage: str | None, copied: bool) -> None:
    with BuildCache(out) as cache:
        make(cache)
        path = cache.path(NAME)
    if copied:
        os.utime(path, ns=(1, 1))
    cache = BuildCache(out)
    if when == "after":
        hash_ahead(cache)
    if damage == "gone":
        path.unlink()
    elif damage:
        path.write_text(damage)
    if when == "before":
        hash_ahead(cache)
    with cache:
        assert make(cache) == (damage is not None)
        assert not make(cache, text="another"), "what was made since is not taken for what was hashed"


def hash_ahead(cache: BuildCache) -> None:
    """Hashes, and waits until it is done."""
    cache.hash_ahead()
    for thread in threading.enumerate():
        if thread.name == "hashing ahead":
            thread.join()


def test_taken_over_from_the_bundle_of_before(out: Path) -> None:
    bundle_of_before(out)
    cache = BuildCache(out)
    assert not make(cache, text="never written") and cache.reasons[NAME].startswith("fresh")
    assert cache.path(NAME).read_text() == "graph" == (out / NAME).read_text()


def test_what_was_taken_over_can_be_made_again_without_touching_the_bundle(out: Path) -> None:
    bundle_of_before(out)
    cache = BuildCache(out)
    make(cache)
    assert make(cache, {"base": "new"}, "other")
    assert cache.path(NAME).read_text() == "other" and (out / NAME).read_text() == "graph"


def test_what_is_taken_over_has_the_permissions_of_the_umask(out: Path) -> None:
    bundle_of_before(out)
    linked = BuildCache(out)
    assert not make(linked) and linked.path(NAME).samefile(out / NAME)
    (out / NAME).chmod(0o600)
    copied = BuildCache(out)
    assert not make(copied) and not copied.path(NAME).samefile(out / NAME)
    assert copied.path(NAME).stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert (out / NAME).stat().st_mode & 0o777 == 0o600, "the bundle before stays as it was"


def test_a_damaged_bundle_of_before_is_not_taken_over(out: Path) -> None:
    bundle_of_before(out)
    (out / NAME).write_text("grapH")
    cache = BuildCache(out)
    assert make(cache) and cache.path(NAME).read_text() == "graph" and (out / NAME).read_text() == "grapH"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_maker_leaves_no_half_file(out: Path, error: BaseException) -> None:
    def maker(path: Path) -> None:
        path.write_text("gra")
        raise error

    cache = BuildCache(out)
    with pytest.raises((KeyboardInterrupt, OSError)):
        cache.make(NAME, INPUTS, maker)
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]
    assert NAME not in cache.used and make(BuildCache(out))


def test_an_interrupted_maker_leaves_the_file_of_before(out: Path) -> None:
    make(BuildCache(out))
    cache = BuildCache(out)

    def maker(path: Path) -> None:
        path.write_text("oth")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make(NAME, {"base": "new"}, maker)
    assert [path.name for path in cache.path(NAME).parent.iterdir()] == ["mfm.onnx"]
    assert not make(BuildCache(out))


def test_one_build_at_a_time(out: Path) -> None:
    with BuildCache(out) as cache:
        scratch = cache.root / f"{tempfile.gettempprefix()}references"
        scratch.mkdir()
        with pytest.raises(UsageError, match="another build of .*mini is at work"), BuildCache(out):
            pass
        assert scratch.is_dir() and make(cache)
    with BuildCache(out) as cache:
        assert not scratch.exists() and not make(cache)


def test_a_block_that_made_nothing_leaves_nothing(out: Path) -> None:
    bundle_of_before(out)
    shutil.rmtree(out.with_name("mini.partial"))
    with BuildCache(out) as cache:
        assert cache.fresh(NAME, INPUTS) and cache.root.exists()
    assert not cache.root.exists() and (out / NAME).read_text() == "graph"


@pytest.mark.parametrize("found", [False, True])
def test_an_abandoned_build_leaves_what_it_found(out: Path, found: bool) -> None:
    if found:
        with BuildCache(out) as cache:
            make(cache)
    with BuildCache(out) as cache:
        make(cache, name="report/precision.json")
        cache.abandon()
    assert cache.root.exists() is found
    assert make(BuildCache(out)) is not found


@pytest.mark.parametrize("ledger", ["", "{", "[]", '{"a": 1}', '{"onnx/fp32/mfm.onnx": {"bytes": 5}}', "null"])
def test_a_damaged_ledger_keeps_nothing(out: Path, ledger: str) -> None:
    make(BuildCache(out))
    (out.parent / "mini.partial/ledger.json").write_text(ledger)
    cache = BuildCache(out)
    assert make(cache) and cache.reasons[NAME] == "stale: not built yet"


def test_finish_keeps_what_this_run_used(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(BuildCache(out), name="old/left over.onnx")
    cache = BuildCache(out)
    make(cache)
    written = {}

    def write_bundle(manifest: dict, staging: Path, destination: Path, hashes: dict) -> str:
        files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*"))
        written.update(manifest=manifest, files=files, destination=destination, hashes=hashes)
        return "the bundle"

    monkeypatch.setattr("export.cache.write_bundle", write_bundle)
    assert cache.finish({"name": "mini"}) == "the bundle"
    assert written["destination"] == out and written["files"] == ["onnx", "onnx/fp32", NAME]
    key = key_of(json.loads(json.dumps(INPUTS)))
    assert written["manifest"]["files"] == {NAME: {"key": key}} and written["manifest"]["name"] == "mini"
    assert written["hashes"] == {NAME: cache.used[NAME].sha256}
    assert Entry(**written["manifest"]["build"][NAME]) == cache.used[NAME]
    assert not cache.root.exists()


def test_key_of() -> None:
    assert re.fullmatch("[0-9a-f]{16}", key_of(INPUTS))
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})


def test_hash_sources(tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("x = 1")
    second.write_text("y = 2")
    before = hash_sources([first, second])
    assert before == hash_sources([second, first]) != hash_sources([first])
    second.write_text("y = 3")
    assert hash_sources([first, second]) != before


def test_what_an_installation_leaves_is_no_source(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("step", [parity_step, precision_step, simplify_step, engine_step])
def test_what_is_hashed_for_a_step_is_source_of_the_checkout(step: ModuleType) -> None:
    packages = {path for name in ("dod", "export", "runtime") for path in package_sources(ROOT / name)}
    assert set(step.SOURCES) <= packages
    assert step is not parity_step or set(package_sources(ROOT / "runtime")) <= set(step.SOURCES)


def test_graphs_are_stale_when_any_module_of_the_model_changes() -> None:
    """The list in export/preflight.py is what loading a model really imports, in a process of its own."""
    code = (
        "import sys, dod.checkpoint;"
        "print([m.__file__ for name, m in sys.modules.items() if name.partition('.')[0] == 'dod'])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = {Path(file).relative_to(ROOT / "dod").with_suffix("").as_posix() for file in ast.literal_eval(loaded)}
    assert modules == set(MODEL_MODULES)
