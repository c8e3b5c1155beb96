"""Writing a bundle: a former one is replaced as a whole or stays as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.write import write_bundle
from dod_runtime.errors import BundleError
from tests.runtime.toy_bundle import write_toy_bundle


def test_a_former_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "bundle", conditions=["haze"], precisions=["fp32"])
    (folder / "stray").touch()
    write_toy_bundle(folder, conditions=["rain"], precisions=["fp32"])
    assert set(Bundle.open(folder).manifest.conditions) == {"rain"}
    assert not (folder / "stray").exists()
    assert os.listdir(tmp_path) == ["bundle"]


def test_report_and_ledger_are_not_listed(copy: Path, tmp_path: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    listed = set(data.pop("files"))
    (copy / "report").mkdir()
    for name in ("build.json", "report/plot.png", "more.bin"):
        (copy / name).touch()
    bundle = write_bundle(data, copy, tmp_path / "again", {"onnx/fp32/mfm.onnx": "0" * 64})
    assert set(bundle.manifest.files) == listed | {"more.bin"}
    assert bundle.manifest.files["onnx/fp32/mfm.onnx"].sha256 == "0" * 64, "a hash that is given is not computed"
    assert not copy.exists()


def test_an_invalid_manifest_changes_nothing(copy: Path, tmp_path: Path) -> None:
    old = write_toy_bundle(tmp_path / "old", precisions=["fp32"])
    data = json.loads((copy / "bundle.json").read_text())
    del data["crops"]
    with pytest.raises(BundleError, match="crops is missing"):
        write_bundle(data, copy, old)
    Bundle.open(old).verify()
    assert (copy / "onnx").is_dir()


def test_a_folder_that_is_no_bundle_is_never_replaced(copy: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").touch()
    with pytest.raises(BundleError, match="photos"):
        write_bundle({}, copy, photos)
    assert (photos / "one.jpg").exists()


@pytest.mark.parametrize(
    ("error", "expected"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.EXDEV, "other disk"), BundleError)]
)
def test_the_former_bundle_is_put_back(
    error: BaseException, expected: type[BaseException], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_toy_bundle(tmp_path / "old", precisions=["fp32"], conditions=["rain"])
    data = json.loads((copy / "bundle.json").read_text())
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if Path(source) == copy:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(expected):
        write_bundle(data, copy, old)
    assert set(Bundle.open(old).manifest.conditions) == {"rain"}
