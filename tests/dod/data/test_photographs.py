"""Photographs: the list, their preparation, and packages that are missing or damaged."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dod.data import photographs
from dod.data.photographs import Photograph, listed_photographs, main, prepare, prepare_photographs
from dod.errors import DataError, run_command

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def test_list_is_sound() -> None:
    listed = listed_photographs()
    assert len({photograph.name for photograph in listed}) == len(listed)
    assert len({(photograph.package, photograph.file) for photograph in listed}) == len(listed)
    licences = {split: {photograph.licence for photograph in listed_photographs(split)} for split in photographs.SPLITS}
    assert licences == {
        "train": {
            *("Apache-2.0", "BSD-2-Clause", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "Expat", "GFDL-1.2+", "GPL-2+"),
            *("GPL-3+", "LGPL-2.1+", "public-domain"),
        },
        "held_out": {
            *("CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "Expat", "Expat or Apache-2.0"),
            "public-domain",
        },
    }
    assert len(listed_photographs("held_out")) >= 30
    assert listed_photographs("train") + listed_photographs("held_out") != []
    authors = {split: {photograph.author for photograph in listed_photographs(split)} for split in photographs.SPLITS}
    many = {"unnamed (unsplash.com)"}
    assert authors["train"] & authors["held_out"] <= many, "an author in both splits may be the same scene twice"


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="'test'.* train, held_out"):
        listed_photographs("test")


@pytest.mark.parametrize(("size", "expected"), [((400, 200), (100, 50)), ((100, 30), (100, 30)), ((900, 2), (100, 1))])
def test_prepare_reduces_and_never_enlarges(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert prepare(Image.new("RGB", size), 100).size == expected


def test_prepare_gives_upright_rgb() -> None:
    image = Image.new("L", (40, 20))
    image.getexif()[0x0112] = 6
    prepared = prepare(image, 100)
    assert prepared.mode == "RGB" and prepared.size == (20, 40)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one package of two images, and a list that names them."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: toy\n"
    )
    (tree / "share").mkdir()
    Image.fromarray(data.astronaut()).save(tree / "share" / "astronaut.png")
    Image.fromarray(data.coffee()[:200]).convert("L").save(tree / "share" / "coffee.jpg")
    (tree / "share" / "broken.jpg").write_bytes(b"not an image")
    (tree / "share" / "empty.edj").write_bytes(b"no \xff\xd8\xff image")
    (tree / "share" / "theme.edj").write_bytes(
        b"\0eet" + jpeg(data.coffee()[:60]) + b"\0" + jpeg(data.rocket()) + b"\0"
    )
    packages = tmp_path / "packages"
    packages.mkdir()
    command = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(packages / "toy_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    _list(monkeypatch, [_toy("astronaut", "train"), _toy("coffee", "held_out", ".jpg")])
    return packages


def jpeg(pixels: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG")
    return written.getvalue()


def _toy(name: str, split: photographs.Split, suffix: str = ".png") -> Photograph:
    return Photograph(name, "toy", f"share/{name}{suffix}", "Zoë Someone", "CC0-1.0", split)


def _list(monkeypatch: pytest.MonkeyPatch, listed: list[Photograph]) -> None:
    monkeypatch.setattr(photographs, "listed_photographs", lambda split=None: listed)


@needs_dpkg
def test_command_prepares_both_splits(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [str(out), "--packages-from", str(packages), "--longest", "128"]
    assert run_command(main, command) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "held_out/coffee.png",
        "train/astronaut.png",
    ]
    assert "1 photographs in" in capsys.readouterr().out
    with Image.open(out / "train" / "astronaut.png") as image:
        assert image.size == (128, 128) and image.mode == "RGB"
        assert image.text["Source"] == "Debian package toy, share/astronaut.png"  # type: ignore[attr-defined]
        assert image.text["Author"] == "Zoë Someone"  # type: ignore[attr-defined]
        expected = Image.fromarray(data.astronaut()).resize((128, 128), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(image), np.asarray(expected))


@needs_dpkg
def test_only_what_changed_is_written_again(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    train, held_out = prepare_photographs(out, packages, longest=128)
    stamps = train.stat().st_mtime_ns, held_out.stat().st_mtime_ns
    held_out.write_bytes(held_out.read_bytes()[:20])
    prepare_photographs(out, packages, longest=128)
    assert train.stat().st_mtime_ns == stamps[0] and held_out.stat().st_mtime_ns != stamps[1]

    prepare_photographs(out, packages, longest=64)
    with Image.open(train) as image:
        assert max(image.size) == 64

    own = out / "train" / "own.png"
    Image.new("RGB", (8, 8)).save(own)
    _list(monkeypatch, [_toy("astronaut", "held_out"), _toy("coffee", "held_out", ".jpg")])
    prepare_photographs(out, packages, longest=64)
    assert not train.exists() and (out / "held_out" / "astronaut.png").exists(), "an image is in both splits"
    assert own.exists(), "a file of the user was deleted"


@needs_dpkg
def test_no_package_is_needed_when_all_is_there(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_photographs(out, packages, longest=64)
    shutil.rmtree(packages)
    assert len(prepare_photographs(out, packages, longest=64)) == 2


@needs_dpkg
@pytest.mark.parametrize(
    ("photograph", "message"),
    [
        (_toy("absent", "train"), "toy.* share/absent.png"),
        (_toy("broken", "train", ".jpg"), "share/broken.jpg of toy"),
    ],
)
def test_bad_package_content(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: Photograph, message: str
) -> None:
    _list(monkeypatch, [photograph])
    with pytest.raises(DataError, match=message):
        prepare_photographs(tmp_path / "out", packages)
    assert not list((tmp_path / "out").rglob("*.*"))


@needs_dpkg
def test_damaged_package(packages: Path, tmp_path: Path) -> None:
    (packages / "toy_1_all.deb").write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(DataError, match=r"toy_1_all\.deb"):
        prepare_photographs(tmp_path / "out", packages)


def test_command_reports_a_missing_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(tmp_path / "out"), "--packages-from", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "lomiri-wallpapers-16.04_*.deb" in error and "packages.debian.org" in error


def test_missing_apt_gives_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="apt-get.*--packages-from"):
        prepare_photographs(tmp_path / "out")


def test_failed_download_gives_the_reason_of_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:/usr/bin:/bin")
    with pytest.raises(DataError, match="E: Unable to locate package.*apt-get update"):
        prepare_photographs(tmp_path / "out")


def test_longest_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1 px.* 0"):
        prepare_photographs(tmp_path, longest=0)


@needs_dpkg
def test_the_largest_image_of_a_theme_is_taken(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _list(monkeypatch, [_toy("theme", "train", ".edj")])
    (path,) = prepare_photographs(tmp_path / "out", packages)
    with Image.open(path) as image:
        assert image.size == data.rocket().shape[1::-1]
        assert np.abs(np.asarray(image, np.float32) - data.rocket()).mean() < 4
    _list(monkeypatch, [_toy("empty", "train", ".edj")])
    with pytest.raises(DataError, match="share/empty.edj of toy.*JPEG"):
        prepare_photographs(tmp_path / "out", packages)
