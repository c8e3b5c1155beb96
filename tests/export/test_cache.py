"""The build cache: what it takes over, what it makes and why, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dod_runtime.bundle.bundle import LEDGER
from dod_runtime.errors import UsageError
from dod_runtime.files import current_umask
from export import ledger
from export.cache import Artifact, BuildCache, writes
from export.ledger import BackgroundHashes, CacheEntry, read_ledger, write_ledger

INPUTS = {"base": "abc", "size": (256, 512), "settings": {"step": {"timestep": 999}}}
NAME = "onnx/fp32/mfm.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "mini"


def artifact(inputs: Mapping[str, Any] = INPUTS, text: str = "graph", name: str = NAME) -> Artifact:
    def write(path: Path) -> dict[str, int]:
        path.write_text(text)
        return {"layers": 3}

    return Artifact(name, inputs, writes(write))


def make(cache: BuildCache, inputs: Mapping[str, Any] = INPUTS, text: str = "graph", name: str = NAME) -> bool:
    """Return True if the file was made, False if it was cached."""
    return [made for made, _ in cache.make([artifact(inputs, text, name)])] == [name]


def earlier_bundle(out: Path, text: str = "graph") -> None:
    """Leave at `out` what an earlier build left there, as far as the cache looks at it."""
    cache = BuildCache(out)
    make(cache, text=text)
    (out / NAME).parent.mkdir(parents=True)
    (cache.folder / NAME).replace(out / NAME)
    write_ledger(out / LEDGER, cache.used)
    (cache.scratch / LEDGER).unlink()


def test_a_file_is_made_once_and_cached_for_the_next_build(out: Path) -> None:
    cache = BuildCache(out)
    assert make(cache) and cache.reasons[NAME] == "stale: not built yet"
    assert not make(cache, text="never written")
    again = BuildCache(out)
    assert not make(again, text="never written")
    assert again.reasons[NAME] == "cached: same inputs (base, size, settings)"
    assert again.path(NAME).read_text() == "graph"
    assert again.path(NAME).parent == out.parent / "mini.partial/files/onnx/fp32"
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
def test_changed_inputs_are_named_and_the_file_is_made(out: Path, inputs: dict, reason: str) -> None:
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


def test_what_is_needed_decides_by_its_content(out: Path) -> None:
    def made(text: str, inputs: Mapping[str, Any] = INPUTS) -> list[str]:
        needing = Artifact("report/plot.png", {}, writes(Path.touch), needs=(NAME,))
        return [name for name, _ in BuildCache(out).make([artifact(inputs, text), needing])]

    assert made("graph") == [NAME, "report/plot.png"]
    assert made("graph") == []
    assert made("graph", {"base": "new"}) == [NAME], "made again to the same content"
    assert made("other", {"base": "newer"}) == [NAME, "report/plot.png"]


def test_what_needs_a_stale_file_is_stale(out: Path) -> None:
    needing = Artifact("report/plot.png", {}, writes(Path.touch), needs=(NAME,))
    list(BuildCache(out).make([artifact(), needing]))
    explained = BuildCache(out)
    assert not explained.is_cached(artifact({"base": "new"})) and not explained.is_cached(needing)
    assert explained.reasons["report/plot.png"] == f"stale: made from {NAME}, which is stale"
    assert explained.is_cached(artifact()) and explained.is_cached(needing)


def test_neighbours_with_one_maker_are_made_by_one_call(out: Path) -> None:
    calls: list[list[str]] = []

    def maker(paths: Mapping[str, Path]) -> Generator[tuple[str, dict[str, float]], None, None]:
        calls.append(list(paths))
        for name in reversed(list(paths)):
            paths[name].write_text(name)
            yield name, {"seconds": 1.5}

    artifacts = [Artifact(name, {}, maker) for name in ("a.onnx", "b.onnx", "c.onnx")]
    entries = dict(BuildCache(out).make(artifacts[1:2]))
    assert calls == [["b.onnx"]] and entries["b.onnx"].seconds == 1.5 and entries["b.onnx"].facts == {}
    cache = BuildCache(out)
    assert [name for name, _ in cache.make(artifacts)] == ["c.onnx", "a.onnx"]
    assert calls[1:] == [["a.onnx", "c.onnx"]]
    assert all(cache.path(name).read_text() == name for name in cache.used)


def test_an_unchanged_file_is_not_read_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier_bundle(out)
    read: list[Path] = []
    single = ledger.hash_file
    monkeypatch.setattr(ledger, "hash_file", lambda path: read.append(path) or single(path))
    with BuildCache(out) as cache:
        hash_ahead(cache)
        assert not make(cache) and not read
    os.utime(out / NAME, ns=(1, 1))  # as in a bundle that was copied
    with BuildCache(out) as cache:
        hash_ahead(cache)
        assert not make(cache) and read == [out / NAME]
        assert cache.used[NAME].state[-1] == 1
    os.utime(out / NAME, ns=(10**9, 10**9))
    with BuildCache(out) as cache:
        assert not make(cache) and cache.used[NAME].state == [], "no state where a file system counts in seconds"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("damage", [None, "grapf", "gone"])
@pytest.mark.parametrize("copied", [False, True])
def test_damage_is_found_whenever_the_file_is_hashed(out: Path, when: str, damage: str | None, copied: bool) -> None:
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
        assert not make(cache, text="another"), "the file made since is not taken for the one that was hashed"


def hash_ahead(cache: BuildCache) -> None:
    """Hash in the background, and wait for the end."""
    cache.hash_ahead()
    for thread in threading.enumerate():
        if thread.name == BackgroundHashes.THREAD:
            thread.join()


def test_a_file_of_the_earlier_bundle_is_taken_over(out: Path) -> None:
    earlier_bundle(out)
    cache = BuildCache(out)
    assert not make(cache, text="never written") and cache.reasons[NAME].startswith("cached")
    assert cache.path(NAME).read_text() == "graph" == (out / NAME).read_text()


def test_making_a_file_again_does_not_touch_the_earlier_bundle(out: Path) -> None:
    earlier_bundle(out)
    cache = BuildCache(out)
    make(cache)
    assert make(cache, {"base": "new"}, "other")
    assert cache.path(NAME).read_text() == "other" and (out / NAME).read_text() == "graph"


def test_a_file_that_is_taken_over_has_the_permissions_of_the_umask(out: Path) -> None:
    earlier_bundle(out)
    linked = BuildCache(out)
    assert not make(linked) and linked.path(NAME).samefile(out / NAME)
    (out / NAME).chmod(0o600)
    copied = BuildCache(out)
    assert not make(copied) and not copied.path(NAME).samefile(out / NAME)
    assert copied.path(NAME).stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert (out / NAME).stat().st_mode & 0o777 == 0o600, "the earlier bundle stays as it was"


def test_a_damaged_file_of_the_earlier_bundle_is_not_taken_over(out: Path) -> None:
    earlier_bundle(out)
    (out / NAME).write_text("grapH")
    cache = BuildCache(out)
    assert make(cache) and cache.path(NAME).read_text() == "graph" and (out / NAME).read_text() == "grapH"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_maker_leaves_no_partial_file(out: Path, error: BaseException) -> None:
    def write(path: Path) -> None:
        path.write_text("gra")
        raise error

    cache = BuildCache(out)
    with pytest.raises((KeyboardInterrupt, OSError)):
        list(cache.make([Artifact(NAME, INPUTS, writes(write))]))
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]
    assert NAME not in cache.used and make(BuildCache(out))


def test_an_interrupted_maker_leaves_the_finished_file(out: Path) -> None:
    make(BuildCache(out))

    def write(path: Path) -> None:
        path.write_text("oth")
        raise KeyboardInterrupt

    cache = BuildCache(out)
    with pytest.raises(KeyboardInterrupt):
        list(cache.make([Artifact(NAME, {"base": "new"}, writes(write))]))
    assert [path.name for path in cache.path(NAME).parent.iterdir()] == ["mfm.onnx"]
    assert not make(BuildCache(out))


def test_files_finished_before_an_interruption_stay(out: Path) -> None:
    def maker(paths: Mapping[str, Path]) -> Generator[tuple[str, dict], None, None]:
        for name, path in paths.items():
            path.write_text(name)
            if name == "b.onnx":
                raise KeyboardInterrupt
            yield name, {}

    artifacts = [Artifact(name, {}, maker) for name in ("a.onnx", "b.onnx")]
    with pytest.raises(KeyboardInterrupt):
        list(BuildCache(out).make(artifacts))
    again = BuildCache(out)
    assert [again.is_cached(each) for each in artifacts] == [True, False]


def test_one_build_at_a_time(out: Path) -> None:
    with BuildCache(out) as cache:
        leftover = cache.scratch / f"{tempfile.gettempprefix()}references"
        leftover.mkdir()
        with pytest.raises(UsageError, match=r"mini.*--out"), BuildCache(out):
            pass
        assert leftover.is_dir() and make(cache)
    with BuildCache(out) as cache:
        assert not leftover.exists() and not make(cache)


def test_a_block_that_makes_nothing_leaves_nothing(out: Path) -> None:
    earlier_bundle(out)
    shutil.rmtree(out.with_name("mini.partial"))
    with BuildCache(out) as cache:
        assert cache.is_cached(artifact()) and cache.scratch.exists()
    assert not cache.scratch.exists() and (out / NAME).read_text() == "graph"


@pytest.mark.parametrize("existed", [False, True])
def test_an_abandoned_build_leaves_what_it_found(out: Path, existed: bool) -> None:
    if existed:
        with BuildCache(out) as cache:
            make(cache)
    with BuildCache(out) as cache:
        make(cache, name="report/precision.json")
        cache.abandon()
    assert cache.scratch.exists() is existed
    assert make(BuildCache(out)) is not existed


@pytest.mark.parametrize("where", ["interrupted", "earlier"])
def test_without_a_ledger_everything_is_made(out: Path, where: str) -> None:
    if where == "earlier":
        earlier_bundle(out)
        (out / LEDGER).unlink()
    else:
        make(BuildCache(out))
        (out.parent / "mini.partial" / LEDGER).write_text("{")
    cache = BuildCache(out)
    assert make(cache) and cache.reasons[NAME] == "stale: not built yet"


def test_finish_keeps_the_used_files_and_their_ledger(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(BuildCache(out), name="old/left over.onnx")
    cache = BuildCache(out)
    make(cache)
    written: dict[str, Any] = {}
    entries: dict[str, CacheEntry] = {}

    def write_bundle(manifest: dict, staging: Path, destination: Path, hashes: dict) -> str:
        files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*"))
        entries.update(read_ledger(staging / LEDGER))
        written.update(manifest=manifest, files=files, destination=destination, hashes=hashes)
        return "the bundle"

    monkeypatch.setattr("export.cache.write_bundle", write_bundle)
    assert cache.finish({"name": "mini"}) == "the bundle"
    assert written["destination"] == out and written["files"] == [LEDGER, "onnx", "onnx/fp32", NAME]
    assert written["manifest"] == {"name": "mini"}, "nothing of the ledger is in the manifest"
    assert written["hashes"] == {NAME: cache.used[NAME].sha256}
    assert entries == {NAME: replace(cache.used[NAME], inputs=json.loads(json.dumps(INPUTS)))}
    assert not cache.scratch.exists()
