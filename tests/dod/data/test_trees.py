"""Data set trees: which images are paired, and what an incomplete tree or list reports."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dod.data.degradations import DEGRADATIONS
from dod.data.trees import LISTS, SETTINGS, Pair, find_pairs
from dod.errors import DataError
from tests.dod.data.small_tree import HAZE, PAIRS, image, make_lists, make_tree, save


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data")


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    return make_lists(tmp_path / "data_dir")


def test_settings_of_the_paper() -> None:
    assert [set(names) for names in SETTINGS.values()] == [{"rain", "haze", "noise"}, set(DEGRADATIONS)]
    assert set(PAIRS) == set(DEGRADATIONS)


def test_many_hazy_images_of_one_clean(root: Path) -> None:
    folder = root / "Train/Dehaze"
    clean = {"0025": folder / "original/0025.png", "3068": folder / "original/3068.png"}
    assert find_pairs(root, "haze") == [
        Pair("haze", folder / "synthetic/part1/0025_0.85_0.2.png", clean["0025"]),
        Pair("haze", folder / "synthetic/part1/0025_0.8_0.04.png", clean["0025"]),
        Pair("haze", folder / "synthetic/part2/3068_1_0.1.png", clean["3068"]),
    ]


def test_a_clean_image_in_another_format(root: Path) -> None:
    for name in ("original/0025.png", "synthetic/part1/0025_0.8_0.04.png"):
        path = root / "Train/Dehaze" / name
        save(path.with_suffix(".jpg"), image(0))
        path.unlink()
    cleans = [pair.clean.name for pair in find_pairs(root, "haze")]
    assert cleans == ["0025.jpg", "0025.jpg", "3068.png"]


def test_rain_is_paired_by_number(root: Path) -> None:
    folder = root / "Train/Derain"
    for number in (10, 100):  # neither is taken for rain-1
        save(folder / f"rainy/rain-{number}.png", image(0))
        save(folder / f"gt/norain-{number}.png", image(0))
    names = [(pair.degraded.name, pair.clean.name) for pair in find_pairs(root, "rain") if pair.degraded]
    assert sorted(names) == [(f"rain-{n}.png", f"norain-{n}.png") for n in (1, 10, 100, 2)]


@pytest.mark.parametrize("degradation", ["blur", "low-light"])
def test_equal_names(root: Path, degradation: str) -> None:
    pairs = find_pairs(root, degradation)
    degraded, clean = PAIRS[degradation]
    assert len(pairs) == 2
    for pair in pairs:
        assert pair.degraded == root / degraded / pair.clean.name and pair.clean.parent == root / clean


def test_noise_has_clean_images_only(root: Path) -> None:
    folder = root / "Train/Denoise"
    assert find_pairs(root, "noise") == [Pair("noise", None, folder / name) for name in ("00001.bmp", "a8143.png")]


def test_a_linked_folder(root: Path) -> None:
    part = root / "Train/Dehaze/synthetic/part1"
    shutil.move(part, root / "elsewhere")
    os.symlink(root / "elsewhere", part)
    assert len(find_pairs(root, "haze")) == len(HAZE)


@pytest.mark.parametrize(
    ("degradation", "degraded", "clean"),
    [
        ("haze", "test/dehaze/input/0001_0.8_0.2.jpg", "test/dehaze/target/0001.png"),
        ("rain", "test/derain/Rain100L/input/1.png", "test/derain/Rain100L/target/1.png"),
        ("rain", "test/derain/Rain100L/input/rain-001.png", "test/derain/Rain100L/target/norain-001.png"),
        ("noise", None, "test/denoise/bsd68/3096.jpg"),
        (
            "blur",
            "test/deblur/gopro/input/GOPR0384_11_00_000001.png",
            "test/deblur/gopro/target/GOPR0384_11_00_000001.png",
        ),
        ("low-light", "test/enhance/lol/input/22.png", "test/enhance/lol/target/22.png"),
    ],
)
def test_test_trees(tmp_path: Path, degradation: str, degraded: str | None, clean: str) -> None:
    for name in filter(None, (degraded, clean)):
        save(tmp_path / name, image(0))
    expected = Pair(degradation, degraded and tmp_path / degraded, tmp_path / clean)  # type: ignore[arg-type]
    assert find_pairs(tmp_path, degradation, "test") == [expected]


def test_lists_choose_and_order(root: Path, lists: Path) -> None:
    train = root / "Train"
    haze, rain, noise = (
        find_pairs(root, degradation, list_file=lists / LISTS[degradation]) for degradation in ("haze", "rain", "noise")
    )
    assert [pair.degraded for pair in haze] == [train / f"Dehaze/synthetic/{HAZE[i]}.png" for i in (2, 0)]
    assert [pair.clean.name for pair in haze] == ["3068.png", "0025.png"]
    assert rain == [Pair("rain", train / "Derain/rainy/rain-2.png", train / "Derain/gt/norain-2.png")]
    assert noise == [Pair("noise", None, train / "Denoise/a8143.png")]


def test_files_outside_a_list_are_not_checked(root: Path, lists: Path) -> None:
    (root / "Train/Derain/gt/norain-1.png").unlink()
    save(root / "Train/Derain/gt/norain-9.png", image(0))
    assert len(find_pairs(root, "rain", list_file=lists / LISTS["rain"])) == 1


@pytest.mark.parametrize(
    ("degradation", "text", "message"),
    [
        (
            "rain",
            "rainy/rain-1.png\n\nrainy/rain-7.png\n",
            r"rain\.txt names 1 files .*Derain: line 3: rainy/rain-7\.png",
        ),
        ("rain", "rain-1.png", r"1 images outside .*rainy: line 1: .*rain-1\.png"),
        ("noise", "".join(f"{i}.bmp\n" for i in range(9)), r"names 9 files .*line 5: 4\.bmp and 4 more"),
        ("haze", "\n \n", r"haze.txt.*Dehaze"),
    ],
)
def test_bad_lists(root: Path, tmp_path: Path, degradation: str, text: str, message: str) -> None:
    path = tmp_path / f"{degradation}.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        find_pairs(root, degradation, list_file=path)


def test_a_list_that_is_no_text(root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for name in ("list.txt", "missing.txt"):
        with pytest.raises(DataError, match=name):
            find_pairs(root, "rain", list_file=tmp_path / name)


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_missing_folders_name_the_tree(root: Path, degradation: str) -> None:
    degraded, clean = PAIRS[degradation]
    for folder in filter(None, (degraded, clean)):
        shutil.rmtree(root / folder)
        with pytest.raises(DataError, match=f"{root / folder}: .* {degradation} .*{degraded}.*{clean}"):
            find_pairs(root, degradation)
        make_tree(root)


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_empty_folders(root: Path, degradation: str) -> None:
    for folder in filter(None, PAIRS[degradation]):
        shutil.rmtree(root / folder)
        (root / folder).mkdir()
        with pytest.raises(DataError, match=f"{root / folder}.* .bmp"):
            find_pairs(root, degradation)
        make_tree(root)


def test_unpaired_images_are_counted_and_named(root: Path) -> None:
    rain = root / "Train/Derain"
    for number in range(3, 10):
        save(rain / f"rainy/rain-{number}.png", image(0))
    save(rain / "gt/norain-77.png", image(0))
    with pytest.raises(DataError) as caught:
        find_pairs(root, "rain")
    message = str(caught.value)
    assert f"7 of 9 in {rain / 'rainy'}" in message and "rain-6.png, rain-7.png and 2 more" in message
    assert f"1 of 3 in {rain / 'gt'}" in message and "norain-77.png" in message


def test_hazy_images_without_a_clean_one(root: Path) -> None:
    (root / "Train/Dehaze/original/0025.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 in .*: part1/0025_0.85_0.2.png, part1/0025_0.8_0.04.png"):
        find_pairs(root, "haze")


def test_two_clean_images_of_one_name(root: Path) -> None:
    save(root / "Train/Dehaze/original/0025.jpg", image(0))
    with pytest.raises(DataError, match=r"0025\.jpg and .*0025\.png .*"):
        find_pairs(root, "haze")


def test_unknown_degradation_and_split(root: Path) -> None:
    with pytest.raises(DataError, match="'fog'.* haze, rain"):
        find_pairs(root, "fog")
    with pytest.raises(DataError, match="'validation'.* train, test"):
        find_pairs(root, "rain", "validation")
