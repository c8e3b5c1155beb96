"""Means over images and degradations."""

from __future__ import annotations

import pytest

from dod.errors import DataError
from dod.evaluation.metrics import CORE
from dod.evaluation.scores import Score, mean, summarise


def test_means_of_images() -> None:
    found = mean([Score("a", {"psnr": 20, "ssim": 0.5}), Score("b", {"psnr": 30, "ssim": 0.7})])
    assert found.name == "mean" and found.values == pytest.approx({"psnr": 25, "ssim": 0.6})
    with pytest.raises(DataError, match="no images"):
        mean([])


def test_degradations_have_equal_weight_and_take_metrics_of_sets() -> None:
    images = [Score("rain/a", {"psnr": 20}), Score("rain/b", {"psnr": 30}), Score("haze/c", {"psnr": 40})]
    result = summarise([CORE["psnr"]], images, {"rain": {"fid": 1.0}, "haze": {"fid": 3.0}})
    assert [each.name for each in result.degradations] == ["rain", "haze"]
    assert result.mean.values == pytest.approx({"psnr": 32.5, "fid": 2.0})
