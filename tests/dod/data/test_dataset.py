"""Training crops of photographs: content, frequency and determinism of the samples, and errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.utils.data import DataLoader

from dod.data.dataset import CLEAN, PhotographCrops, load_photographs, to_tensor
from dod.data.degradations import DEGRADATIONS
from dod.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    Image.fromarray(data.astronaut()[:200, :240]).save(folder / "b.png")
    Image.fromarray(data.chelsea()[:160, :300]).save(folder / "a.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("color_jitter", [0.0, 1.0])
def test_samples(folder: Path, color_jitter: float) -> None:
    crops = PhotographCrops(folder, crop=64, seed=0, color_jitter=color_jitter)
    assert crops.names == (*DEGRADATIONS, CLEAN)
    counts = dict.fromkeys(range(6), 0)
    for i in range(200):
        degraded, clean, index = crops[i]
        counts[index] += 1
        for tensor in (degraded, clean):
            assert tensor.shape == (3, 64, 64) and tensor.dtype == torch.float32 and tensor.is_contiguous()
            assert tensor.min() >= -1 and tensor.max() <= 1
        assert torch.equal(degraded, clean) == (crops.names[index] == CLEAN)
    assert min(counts[index] for index in range(5)) > 15
    assert 5 < counts[5] < 40


def test_sample_depends_on_seed_and_index_only(folder: Path) -> None:
    forwards = PhotographCrops(folder, crop=32, seed=4)
    backwards = PhotographCrops(folder, crop=32, seed=4)
    first = [forwards[i] for i in range(12)]
    second = [backwards[i] for i in reversed(range(12))][::-1]
    for (a, b, i), (c, d, j) in zip(first, second, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d) and i == j
    other = PhotographCrops(folder, crop=32, seed=5)
    assert not torch.equal(first[0][1], other[0][1])


def test_worker_processes_see_the_same_samples(folder: Path) -> None:
    crops = PhotographCrops(folder, crop=32, seed=4, length=8)
    alone = list(DataLoader(crops, batch_size=4))
    workers = list(DataLoader(crops, batch_size=4, num_workers=2))
    assert len(alone) == len(workers) == 2
    for left, right in zip(alone, workers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_chosen_degradations(folder: Path) -> None:
    crops = PhotographCrops(folder, crop=32, seed=0, degradations=("noise",), clean_fraction=0.0)
    assert crops.names == ("noise", CLEAN)
    assert {crops[i][2] for i in range(10)} == {0}
    clean = PhotographCrops(folder, crop=32, seed=0, degradations=(), clean_fraction=1.0)
    assert {clean[i][2] for i in range(10)} == {0}


def test_the_smallest_photograph_that_fits(folder: Path) -> None:
    crops = PhotographCrops(folder, crop=160, seed=0)
    assert all(crops[i][0].shape == (3, 160, 160) for i in range(10))


def test_length_bounds_the_index(folder: Path) -> None:
    crops = PhotographCrops(folder, crop=32, seed=0, length=3)
    assert len(crops) == 3
    with pytest.raises(IndexError):
        crops[3]


def test_color_jitter_keeps_the_scene_and_varies_hues(folder: Path) -> None:
    options = {"crop": 32, "seed": 4, "degradations": (), "clean_fraction": 1.0}
    plain, other = (PhotographCrops(folder, color_jitter=fraction, **options) for fraction in (0.0, 1.0))
    strongest = []
    for i in range(60):
        a, b = ((crops[i][1] + 1) / 2 for crops in (plain, other))
        x, y = (image.mean(0).flatten() for image in (a, b))
        assert np.corrcoef(x, y)[0, 1] > 0.5, "luminance is no longer correlated"
        strongest.append((int(a.mean((1, 2)).argmax()), int(b.mean((1, 2)).argmax())))
    assert {b for _, b in strongest} == {0, 1, 2}
    assert sum(a != b for a, b in strongest) > 20
    some = PhotographCrops(folder, color_jitter=0.5, **options)
    assert 10 < sum(torch.equal(some[i][1], plain[i][1]) for i in range(60)) < 50


def test_mist_is_in_both_images(folder: Path) -> None:
    options = {"crop": 64, "seed": 4, "degradations": ("noise",), "clean_fraction": 0.5, "crop_candidates": 1}
    plain, some = PhotographCrops(folder, **options), PhotographCrops(folder, mist=0.5, **options)
    same = sum(torch.equal(some[i][1], plain[i][1]) for i in range(60))
    assert 15 < same < 50
    assert all(torch.equal(*some[i][:2]) for i in range(60) if some[i][2] == 1), "a clean sample is degraded"
    assert some.identity["mist"] == 0.5


def test_more_crop_candidates_give_more_detail(tmp_path: Path) -> None:
    half_flat = np.full((64, 256, 3), 128, np.uint8)
    half_flat[:, 128:] = np.random.default_rng(0).integers(0, 256, (64, 128, 3))
    Image.fromarray(half_flat).save(tmp_path / "a.png")
    options = {"crop": 32, "seed": 4, "degradations": (), "clean_fraction": 1.0}
    flat = []
    for candidates in (1, 2, 6):
        crops = PhotographCrops(tmp_path, crop_candidates=candidates, **options)
        flat.append(sum(float(crops[i][1].std()) == 0 for i in range(60)))
    assert flat[0] > 15 and flat[0] > flat[1] > flat[2], flat


def test_oversampled_degradations_are_more_frequent(folder: Path) -> None:
    options = {"crop": 32, "seed": 4, "clean_fraction": 0.0}
    crops = PhotographCrops(folder, oversample=("blur", "noise"), **options)
    drawn = Counter(crops.names[crops[i][2]] for i in range(420))
    assert drawn.keys() == set(DEGRADATIONS)
    often, seldom = (
        [drawn[name] for name in DEGRADATIONS if (name in crops.oversample) is more] for more in (True, False)
    )
    assert min(often) > max(seldom) and abs(sum(often) / 420 - 4 / 7) < 0.07
    assert (
        crops.identity["oversample"] == ("blur", "noise") != PhotographCrops(folder, **options).identity["oversample"]
    )


def test_a_sample_is_described_by_its_photograph(folder: Path) -> None:
    crops = PhotographCrops(folder, crop=160, seed=0, degradations=(), clean_fraction=1.0)
    sizes = {"a.png": data.chelsea()[:160, :300], "b.png": data.astronaut()[:200, :240]}
    for i in range(12):
        mean = ((crops[i][1].numpy() + 1) / 2).mean()
        near = min(sizes, key=lambda name: abs(sizes[name].mean() / 255 - mean))
        assert crops.describe(i) == near


def test_to_tensor_spans_the_range() -> None:
    image = np.zeros((1, 2, 3), np.float32)
    image[0, 1] = 1
    assert to_tensor(image).tolist() == [[[-1, 1]]] * 3


def test_photographs_are_sorted_by_name(folder: Path) -> None:
    photographs = load_photographs(folder)
    assert list(photographs) == ["a.png", "b.png"]
    assert photographs["a.png"].shape == (160, 300, 3) and photographs["a.png"].dtype == np.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 161}, "a.png is 300x160, smaller than a crop of 161 px"),
        ({"crop": 0}, "at least 1 px, not 0"),
        ({"degradations": ("fog",)}, "'fog'.* haze"),
        ({"degradations": ()}, "no degradation"),
        ({"clean_fraction": 1.5}, "between 0 and 1, not 1.5"),
        ({"crop_candidates": 0}, "crop_candidates.* 0"),
        ({"oversample": ("fog",)}, "'fog'.* haze"),
    ],
)
def test_bad_settings(folder: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PhotographCrops(**{"folder": folder, "crop": 32, "seed": 0} | arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_photographs(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name}.*dod-train photographs"):
        PhotographCrops(tmp_path / name, crop=32, seed=0)


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_unreadable_photograph_is_named(tmp_path: Path, folder: Path, damage: str) -> None:
    whole = (folder / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(b"not an image" if damage == "text" else whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.png"):
        PhotographCrops(tmp_path, crop=32, seed=0)
