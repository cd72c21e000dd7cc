"""CMC curves as a picture: the methods of a report, or anything else that has a curve."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from reposer.evaluation.reid_comparison import RERANKED, ReidReport

RANKS = 20  # shown, of the 50 that a report holds
_COLORS = ("#0b6e4f", "#c8553d", "#2f5d9b", "#8a6d1d", "#7b3f8c", "#4a4a4a")  # apart for color-blind readers
_MARKS = "osD^vP"


def draw_cmc(report: ReidReport) -> bytes:
    """PNG bytes: share of queries found by rank, a line a method, its re-ranked twin dashed."""
    return draw_curves({name: result.cmc for name, result in report.results.items()}, "method")


def draw_curves(curves: Mapping[str, NDArray[np.float64]], what: str) -> bytes:
    """PNG bytes: a line for each name, (ranks,) shares in [0, 1]; the name's re-ranked twin is dashed.

    Colors, marks and line styles tell the lines apart, so that the plot can be read in gray.

    Args:
        what: the names are, for the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    bases = list(dict.fromkeys(name.removesuffix(RERANKED) for name in curves))
    for name, curve in curves.items():
        shown = curve[:RANKS]
        kind = bases.index(name.removesuffix(RERANKED))
        axes.plot(
            range(1, len(shown) + 1),
            100 * shown,
            color=_COLORS[kind % len(_COLORS)],
            marker=_MARKS[kind % len(_MARKS)],
            markersize=4,
            linewidth=1.4,
            linestyle="--" if name.endswith(RERANKED) else "-",
            label=f"{name}: {100 * curve[0]:.1f}",
        )
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a match by that rank, %")
    axes.set_xticks([1, 5, 10, 15, 20])
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=f"{what}: rank-1", fontsize=8, title_fontsize=8, frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
