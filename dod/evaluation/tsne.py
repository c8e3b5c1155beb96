"""The paper's Fig. 3: t-SNE of vectors, coloured by group, as an image."""

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
PERPLEXITY = 30.0
INCHES, DPI = (7.2, 5.4), 160
INK, FAINT = "#303030", "#c8c8c8"

COLOURS = {
    "haze": "#56b4e9",
    "rain": "#0072b2",
    "noise": "#d55e00",
    "blur": "#009e73",
    "low-light": "#404040",
    "clean": "#e69f00",
}
"""Okabe and Ito (2008): told apart with any colour vision. Shapes differ too, so that a grey print can be read."""
SPARE = ("#cc79a7", "#8c6d1f", "#7a68c9")
MARKERS = "os^DvPX*<>hp"


def require_libraries() -> None:
    """Raise DataError, with what to install, unless scikit-learn and matplotlib are there."""
    try:
        import matplotlib.figure  # noqa: F401
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"the figure needs scikit-learn and matplotlib ({error}): pip install -e '.[eval]', or add --no-figure"
        ) from error


def embed(vectors: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """t-SNE (van der Maaten and Hinton 2008) by cosine distance: [N, C] -> [N, 2], the same for an equal seed.

    It has no orientation of its own: its longer axis is laid along the first coordinate. Perplexity 30, less for fewer
    than 91 vectors. Raises DataError for fewer than 4, for equal ones, and where scikit-learn is missing.
    """
    require_libraries()
    from sklearn.manifold import TSNE

    values = np.asarray(vectors, np.float64)
    if len(values) < FEWEST:
        raise DataError(f"t-SNE needs at least {FEWEST} images, not {len(values)}: add photographs, or --draws")
    if not np.ptp(values, axis=0).any():
        raise DataError(f"all {len(values)} images have the same condition: there is nothing to draw")
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(values)
    centred = points - points.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2].T


def draw(points: ArrayLike, groups: Sequence[str], title: str, path: Path) -> None:
    """Write a PNG of points [N, 2], each in the colour and shape of its group; the legend names and counts them.

    Groups such as `noise=15` and `noise=25` share the colour and shape of `noise`, the later named the stronger. Raises
    DataError where matplotlib is missing, OSError where the file cannot be written.
    """
    require_libraries()
    from matplotlib.figure import Figure

    values, names = np.asarray(points, np.float64), list(dict.fromkeys(groups))
    figure = Figure(INCHES, layout="constrained")
    axes = figure.subplots()
    for name, style in zip(names, _styles(names), strict=True):
        mine = values[[group == name for group in groups]]
        axes.scatter(
            mine[:, 0],
            mine[:, 1],
            s=30,
            alpha=0.85,
            linewidths=0.5,
            edgecolors="white",
            label=f"{name}  ({len(mine)})",
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
    """Colour and marker of each group: a marker for each family (the part before `=`), shades within it."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition("=")[0], []).append(name)
    spare = iter(SPARE * math.ceil(len(names) / len(SPARE)))
    styles = {}
    for i, (family, members) in enumerate(families.items()):
        colour = COLOURS.get(family) or next(spare)
        for k, name in enumerate(members):
            shade = 1.0 if len(members) == 1 else 0.45 + 0.55 * k / (len(members) - 1)
            styles[name] = {"color": _paler(colour, shade), "marker": MARKERS[i % len(MARKERS)]}
    return [styles[name] for name in names]


def _paler(colour: str, strength: float) -> tuple[float, ...]:
    """A colour `#rrggbb` mixed with white, as three numbers in 0 to 1; strength 1 leaves it."""
    return tuple(1 - strength * (1 - int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
