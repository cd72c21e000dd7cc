"""A map of features in the plane (t-SNE or UMAP), to look at: near each other, but not to be measured.

Both methods keep neighborhoods and invent everything else: sizes of clusters and distances between them mean
nothing (van der Maaten and Hinton, JMLR 2008; McInnes et al., arXiv 1802.03426).
"""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.errors import UserError
from reposer.reid.distances import normalize
from reposer.structures import FeatureSet

MAPS = ("tsne", "umap")
MAX_POINTS = 3_000
COLORED = 20  # people with the most images; the others are gray
FEWEST = 5


def check_map(how: str) -> None:
    """Before anything is computed.

    Raises:
        UserError: an unknown map, or a package that is not installed.
    """
    if how not in MAPS:
        raise UserError(f"no map {how!r}", f"choose one of {', '.join(MAPS)}")
    if how == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("the UMAP map needs umap-learn, not installed here", "pip install reposer[maps]")


def map_points(features: NDArray[np.floating], how: str, seed: int = 0) -> NDArray[np.float32]:
    """(N, D) features, brought to length 1, to (N, 2) places.

    Args:
        how: "tsne" (perplexity 30, or a third of few points) or "umap" (15 neighbors).
        seed: equal seeds, equal maps on one machine.

    Raises:
        UserError: as :func:`check_map`, or fewer than 5 points.
    """
    check_map(how)
    if len(features) < FEWEST:
        raise UserError(f"a map of {len(features)} features", f"give {FEWEST} or more")
    unit, neighbors = normalize(features), (len(features) - 1) / 3
    made: Any
    if how == "tsne":
        from sklearn.manifold import TSNE

        made = TSNE(perplexity=min(30.0, neighbors), init="pca", random_state=seed)
    else:
        from umap import UMAP

        made = UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(unit), np.float32)


def draw_map(features: FeatureSet, how: str, seed: int = 0) -> bytes:
    """PNG bytes: a point an image, the 20 most photographed people in colors, junk and distractors left out.

    More than 3,000 images: as many of them, drawn by ``seed``.

    Raises:
        UserError: as :func:`map_points`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = np.flatnonzero(features.pids > 0)
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_POINTS, replace=False))
    places, pids = map_points(features.features[rows], how, seed), features.pids[rows]
    people, counts = np.unique(pids, return_counts=True)
    shown = people[np.argsort(-counts, kind="stable")][:COLORED]
    figure = Figure(figsize=(8.6, 6.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    x, y = places.T
    rest, others = ~np.isin(pids, shown), f"{len(people) - len(shown)} others"
    axes.scatter(x[rest], y[rest], s=8, color="#c9ced3", linewidths=0, label=others)
    for i, pid in enumerate(shown.tolist()):
        mark = "os^D"[i // 5]  # five colors of each mark: told apart without seeing all colors
        color, own = colormaps["tab10"](2 * (i % 5)), pids == pid
        axes.scatter(x[own], y[own], s=22, color=color, marker=mark, linewidths=0, label=str(pid))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.legend(
        title="person",
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
