"""Training crops of image pairs: content, frequency and determinism of the samples, and damaged data sets."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dod.data.dataset import CLEAN
from dod.data.degradations import DEGRADATIONS
from dod.data.pairs import PairedCrops, check_pairs, list_files
from dod.data.trees import SETTINGS, find_pairs
from dod.errors import DataError
from tests.dod.data.small_tree import HAZE, image, make_lists, make_tree, save

RAINY = "Train/Derain/rainy/rain-1.png"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data")


def pixels(sample: torch.Tensor) -> np.ndarray:
    """Convert a tensor to uint8 [H, W, 3] and check that its values are uint8 levels."""
    values = (sample.permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(values - np.rint(values)).max() < 1e-3
    return np.rint(values).astype(np.uint8)


def found_in(crop: np.ndarray, whole: np.ndarray) -> bool:
    """Return True if `crop`, in one of its eight orientations, is a window of `whole`."""
    size = crop.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(whole, (size, size), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    ways = [np.rot90(side, k) for side in (crop, crop[:, ::-1]) for k in range(4)]
    return any((windows == way).all(axis=(2, 3, 4)).any() for way in ways)


def test_samples(whole: Path) -> None:
    crops = PairedCrops(whole, crop=16, seed=0)
    assert crops.names == (*DEGRADATIONS, CLEAN) and crops.skipped == []
    assert crops.counts == {"haze": 3, "rain": 2, "noise": 2, "blur": 2, "low-light": 2}
    for i in range(40):
        degraded, clean, index = crops[i]
        pair = crops.source(i)
        assert pair.degradation == crops.names[index]
        for tensor in (degraded, clean):
            assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32 and tensor.is_contiguous()
            assert tensor.min() >= -1 and tensor.max() <= 1
        assert found_in(pixels(clean), np.asarray(Image.open(pair.clean)))
        if pair.degraded is not None:  # the clean image plus one, so that place and orientation can be compared
            assert np.array_equal(pixels(degraded), pixels(clean) + 1)


def test_every_orientation_occurs(whole: Path) -> None:
    crops = PairedCrops(whole, crop=64, seed=0, degradations=("rain",))
    firsts = {tuple(crops[i][1][:, 0, 0].tolist() + crops[i][1][:, 0, 1].tolist()) for i in range(400)}
    assert len(firsts) > 150  # 2 images, 17 places, 8 orientations: 272 in all


def test_degradations_are_balanced(root: Path) -> None:
    for number in range(40):
        save(root / f"Train/Dehaze/synthetic/part3/0025_1_{number}.png", image(0))
    crops = PairedCrops(root, crop=16, seed=0)
    counts = np.bincount([crops.names.index(crops.source(i).degradation) for i in range(2000)], minlength=5)
    assert crops.counts["haze"] == 43 and np.all(np.abs(counts - 400) < 80)


def test_noise_is_of_the_three_levels_and_truncated(tmp_path: Path) -> None:
    save(tmp_path / "Train/Denoise/grey.png", np.full((256, 256, 3), 127, np.uint8))
    crops = PairedCrops(tmp_path, crop=256, seed=3, degradations=("noise",))
    residuals = [pixels(crops[i][0]).astype(float) - 127 for i in range(12)]
    levels = sorted(residual.std() for residual in residuals)
    assert {round(level) for level in levels} <= {15, 25, 49, 50} and levels[0] < 16 and levels[-1] > 48
    assert all(residual.min() >= -127 and residual.max() <= 128 for residual in residuals)
    quiet = [residual.mean() for residual in residuals if residual.std() < 30]
    assert np.allclose(quiet, -0.5, atol=0.25)  # truncation lowers the mean by half a level, rounding would not


def test_a_fraction_is_left_clean(whole: Path) -> None:
    crops = PairedCrops(whole, crop=16, seed=0, degradations=("rain", "noise"), clean_fraction=0.25)
    samples = [crops[i] for i in range(200)]
    assert all(torch.equal(degraded, clean) == (crops.names[index] == CLEAN) for degraded, clean, index in samples)
    assert 25 < sum(index == 2 for _, _, index in samples) < 75


def test_a_setting_of_the_paper_needs_only_its_own_folders(root: Path) -> None:
    shutil.rmtree(root / "Train/Deblur")
    shutil.rmtree(root / "Train/Enhance")
    crops = PairedCrops(root, 16, 0, SETTINGS["rain-haze-noise"])
    assert crops.names == ("haze", "rain", "noise", CLEAN)


def test_sample_depends_on_seed_and_index_only(whole: Path) -> None:
    forwards, backwards = (PairedCrops(whole, crop=16, seed=4) for _ in range(2))
    first = [forwards[i] for i in range(12)]
    second = [backwards[i] for i in reversed(range(12))][::-1]
    for (a, b, i), (c, d, j) in zip(first, second, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d) and i == j
    assert not torch.equal(first[0][1], PairedCrops(whole, crop=16, seed=5)[0][1])


def test_worker_processes_see_the_same_samples(whole: Path) -> None:
    crops = PairedCrops(whole, crop=16, seed=4, length=8)
    alone = list(DataLoader(crops, batch_size=4))
    workers = list(DataLoader(crops, batch_size=4, num_workers=2))
    for left, right in zip(alone, workers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert len(pickle.dumps(crops)) < 5000  # names of files, no pixels
    with pytest.raises(IndexError):
        crops[8]


def test_lists(root: Path, tmp_path: Path) -> None:
    lists = make_lists(tmp_path / "data_dir")
    crops = PairedCrops(root, 16, 0, lists=lists)
    assert crops.counts == {"haze": 2, "rain": 1, "noise": 1, "blur": 2, "low-light": 2}
    (lists / "hazy/hazy_outside.txt").unlink()
    with pytest.raises(DataError, match=r"hazy_outside\.txt"):
        PairedCrops(root, 16, 0, lists=lists)
    assert set(list_files(lists, ("rain", "blur"))) == {"rain"}


def test_unequal_sizes_name_both(root: Path) -> None:
    save(root / "Train/Derain/gt/norain-2.png", image(0, (70, 64)))
    with pytest.raises(DataError, match=r"1 of 11 pairs .*rain-2\.png is 80x64, .*norain-2\.png is 70x64"):
        PairedCrops(root, 16, 0)


def test_small_images_are_named(root: Path) -> None:
    PairedCrops(root, 64, 0)[0]
    with pytest.raises(DataError, match=r"11 of 11 .* crop of 65 px: .*0025_0.8_0.04.png is 80x64, .* and 6 more;"):
        PairedCrops(root, 65, 0)


def test_unreadable_images_are_refused_or_skipped(root: Path) -> None:
    broken = [root / RAINY, root / "Train/Dehaze/original/0025.png", root / "Train/Denoise/00001.bmp"]
    for path, damage in zip(broken, (b"", b"not an image", b"BM"), strict=True):
        path.write_bytes(damage)
    with pytest.raises(DataError, match=r"3 of 19 .*--skip-broken") as caught:
        PairedCrops(root, 16, 0)
    assert all(str(path) in str(caught.value) for path in broken)
    crops = PairedCrops(root, 16, 0, skip_broken=True)
    assert sorted(crops.skipped) == sorted(broken)
    assert crops.counts == {"haze": 1, "rain": 1, "noise": 1, "blur": 2, "low-light": 2}
    assert all(crops[i][0].shape == (3, 16, 16) for i in range(30))


def test_nothing_left(root: Path) -> None:
    for path in (root / "Train/Derain/gt").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="rain.* readable"):
        PairedCrops(root, 16, 0, skip_broken=True)


def test_a_truncated_image(root: Path) -> None:
    """Its header is intact, so only decoding shows the damage. Images are thus decoded when they are drawn."""
    path = root / RAINY
    path.write_bytes(path.read_bytes()[:3000])
    strict = PairedCrops(root, 16, 0, degradations=("rain",))
    hit = next(i for i in range(100) if strict.source(i).degraded == path)
    with pytest.raises(DataError, match=str(path)):
        strict[hit]
    lenient = PairedCrops(root, 16, 0, degradations=("rain",), skip_broken=True)
    assert lenient.skipped == []
    with pytest.warns(UserWarning, match=rf"sample {hit}: .*{path}"):
        _, clean, _ = lenient[hit]
    assert found_in(pixels(clean), image(12))
    sound = next(i for i in range(100) if strict.source(i).degraded != path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(lenient[sound][0], strict[sound][0])
    (other := root / "Train/Derain/gt/norain-2.png").write_bytes(other.read_bytes()[:3000])
    with pytest.raises(DataError, match="norain-2|rain-1"), pytest.warns(UserWarning):
        lenient[hit]


def test_a_broken_clean_image_counts_once(root: Path) -> None:
    (root / "Train/Dehaze/original/0025.png").write_bytes(b"")
    good, broken = check_pairs(find_pairs(root, "haze"), skip_broken=True)
    assert [pair.degraded for pair in good] == [root / f"Train/Dehaze/synthetic/{HAZE[2]}.png"]
    assert broken == [root / "Train/Dehaze/original/0025.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 0}, "at least 1 px, not 0"),
        ({"degradations": ("fog",)}, "'fog'.* haze"),
        ({"degradations": ()}, "no degradation"),
        ({"clean_fraction": -0.1}, "between 0 and 1, not -0.1"),
    ],
)
def test_bad_settings(whole: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairedCrops(**{"root": whole, "crop": 16, "seed": 0} | arguments)  # type: ignore[arg-type]
