"""The CMC curves of a report's methods as a picture."""

from __future__ import annotations

import io

from reposer.evaluation.reid_comparison import RERANKED, ReidReport

RANKS = 20  # shown, of the 50 that a report holds
_COLORS = ("#0b6e4f", "#c8553d", "#2f5d9b", "#8a6d1d", "#7b3f8c", "#4a4a4a")  # apart for color-blind readers
_MARKS = "osD^vP"


def draw_cmc(report: ReidReport) -> bytes:
    """PNG bytes: share of queries found by rank, a line a method, its re-ranked twin dashed.

    Colors, marks and line styles tell the methods apart, so that the plot can be read in gray.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    bases = list(dict.fromkeys(name.removesuffix(RERANKED) for name in report.results))
    for name, result in report.results.items():
        shown = result.cmc[:RANKS]
        kind = bases.index(name.removesuffix(RERANKED)) % len(_COLORS)
        axes.plot(
            range(1, len(shown) + 1),
            100 * shown,
            color=_COLORS[kind],
            marker=_MARKS[kind],
            markersize=4,
            linewidth=1.4,
            linestyle="--" if name.endswith(RERANKED) else "-",
            label=f"{name}: {100 * result.values.rank1:.1f}",
        )
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a match by that rank, %")
    axes.set_xticks([1, 5, 10, 15, 20])
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="method: rank-1", fontsize=8, title_fontsize=8, frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
