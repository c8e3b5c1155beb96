"""t-SNE plots: embedding, colours, missing libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dod.errors import DataError
from dod.evaluation.tsne import draw, embed


def test_plot_shows_every_group_in_its_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = [name for name in ("haze", "noise=15", "noise=50", "snow") for _ in range(6)]
    vectors = np.repeat(np.eye(4), 6, axis=0) + 0.05 * rng.standard_normal((24, 4))
    points = embed(vectors, seed=1)
    assert points.shape == (24, 2) and np.isfinite(points).all()
    np.testing.assert_allclose(
        points, embed(vectors, seed=1), atol=1e-3 * np.abs(points).max()
    )  # threads sum in any order
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(24, np.inf))
    assert [groups[i] for i in distance.argmin(1)] == groups  # t-SNE separates the four clusters
    draw(points, groups, "title", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((0x56, 0xB4, 0xE9), (0xD5, 0x5E, 0x00)):  # haze, and the strongest noise
        painted = 0.85 * np.array(colour) + 0.15 * 255  # the opacity of `draw`
        assert (np.abs(pixels - painted).max(1) <= 3).sum() > 200


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)  # imports as if absent
    with pytest.raises(DataError, match=r"scikit-learn.*\[eval\]"):
        embed(np.eye(5))
