"""t-SNE plot of vectors, colored by group (Fig. 3 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

__all__ = ["FEWEST", "draw", "embed", "require_libraries"]

FEWEST = 4
"""Minimum number of vectors."""
PERPLEXITY = 30.0
"""Perplexity of t-SNE."""
INCHES, DPI = (7.2, 5.4), 160
"""Size of the plot, and its resolution."""
INK, FAINT = "#303030", "#c8c8c8"
"""Colors of text and frame."""

COLOURS = {
    "haze": "#56b4e9",
    "rain": "#0072b2",
    "noise": "#d55e00",
    "blur": "#009e73",
    "low-light": "#404040",
    "clean": "#e69f00",
}
"""Colors by Okabe and Ito (2008), distinguishable with any color vision. Markers differ too, for gray prints."""
SPARE = ("#cc79a7", "#8c6d1f", "#7a68c9")
"""Colors of other groups."""
MARKERS = "os^DvPX*<>hp"
"""Markers of the groups."""


def require_libraries() -> None:
    """Check that scikit-learn and matplotlib are installed.

    Raises:
        DataError: one of them is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"the plot needs scikit-learn and matplotlib ({error}): pip install -e '.[eval]', or add --no-figure"
        ) from error


def embed(vectors: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """Embed vectors in the plane by t-SNE with cosine distance (van der Maaten and Hinton 2008).

    The orientation of t-SNE is arbitrary: the longer axis becomes the first coordinate. Perplexity is 30, and less for
    fewer than 91 vectors.

    Args:
        vectors: [N, C].
        seed: seed of t-SNE.

    Returns:
        [N, 2].

    Raises:
        DataError: fewer than 4 vectors, equal vectors, or scikit-learn is missing.
    """
    require_libraries()
    from sklearn.manifold import TSNE

    values = np.asarray(vectors, np.float64)
    if len(values) < FEWEST:
        raise DataError(
            f"t-SNE needs at least {FEWEST} images, not {len(values)}: add photographs, or use more --draws"
        )
    if not np.ptp(values, axis=0).any():
        raise DataError(f"all {len(values)} images have the same condition: there is nothing to draw")
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(values)
    centered = points - points.mean(axis=0)
    return centered @ np.linalg.svd(centered, full_matrices=False)[2].T


def draw(points: ArrayLike, groups: Sequence[str], title: str, path: Path) -> None:
    """Write a scatter plot with a color and marker for each group, and a legend with its name and size.

    Groups such as `noise=15` and `noise=25` share the color and marker of `noise`; later ones are drawn stronger.

    Args:
        points: [N, 2].
        groups: group of each point.
        title: title of the plot.
        path: PNG file to write.

    Raises:
        DataError: matplotlib is missing.
    """
    require_libraries()
    from matplotlib.figure import Figure

    values, names = np.asarray(points, np.float64), list(dict.fromkeys(groups))
    figure = Figure(INCHES, layout="constrained")
    axes = figure.subplots()
    for name, style in zip(names, _styles(names), strict=True):
        members = values[[group == name for group in groups]]
        axes.scatter(
            members[:, 0],
            members[:, 1],
            s=30,
            alpha=0.85,
            linewidths=0.5,
            edgecolors="white",
            label=f"{name}  ({len(members)})",
            **style,
        )
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="box")
    for side in axes.spines.values():
        side.set_color(FAINT)
    style = {"frameon": False, "fontsize": 10, "labelcolor": INK, "markerscale": 1.3}
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, **style)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png", bbox_inches="tight", pad_inches=0.1)


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return color and marker of each group: a marker per degradation (the part before `=`), shades for levels."""
    members_of: dict[str, list[str]] = {}
    for name in names:
        members_of.setdefault(name.partition("=")[0], []).append(name)
    spare = iter(SPARE * math.ceil(len(names) / len(SPARE)))
    styles = {}
    for i, (degradation, members) in enumerate(members_of.items()):
        color = COLOURS.get(degradation) or next(spare)
        for k, name in enumerate(members):
            shade = 1.0 if len(members) == 1 else 0.45 + 0.55 * k / (len(members) - 1)
            styles[name] = {"color": _paler(color, shade), "marker": MARKERS[i % len(MARKERS)]}
    return [styles[name] for name in names]


def _paler(color: str, strength: float) -> tuple[float, ...]:
    """Return a color `#rrggbb` mixed with white, as three numbers in 0 to 1; strength 1 leaves it unchanged."""
    return tuple(1 - strength * (1 - int(color[i : i + 2], 16) / 255) for i in (1, 3, 5))
