"""Re-ID evaluation: features of a query set and a gallery to CMC, both mAPs, mINP, intervals and counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.metrics.intervals import LEVELS, REPEATS, bootstrap_weights
from reposer.metrics.retrieval import (
    DISTRACTOR,
    JUNK,
    NoMatch,
    QueryScores,
    RetrievalProtocol,
    RetrievalValues,
    cmc_curve,
    concatenate,
    denominator,
    mean_values,
    per_query,
)
from reposer.reid.distances import PairwiseForm, normalize
from reposer.reid.quadratic import QuadraticMetric
from reposer.reid.rerank import k_reciprocal
from reposer.reid.search import checked, flagged, known_distance, nearest_columns, pairwise_form
from reposer.structures import FeatureSet, Ranking

LISTED = 50  # gallery images of each query that a re-ranked result keeps


@dataclass(frozen=True, slots=True)
class Rerank:
    """The numbers of k-reciprocal re-ranking; see reposer.reid.rerank."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3  # of the original distance: the paper's lambda


@dataclass(frozen=True, slots=True)
class ReidResult:
    """Scores of one method. Fractions in [0, 1]; the headline counts ties against the query."""

    values: RetrievalValues
    best: RetrievalValues  # the same with ties counted for the query
    intervals: dict[str, tuple[float, float] | None]  # 95 %, bootstrap over query identities
    cmc: NDArray[np.float64]  # (50,)
    counts: dict[str, int]
    scores: QueryScores  # per query
    ranking: Ranking | None = (
        None  # (Q, LISTED) of a re-ranked result, which cannot be searched again by query
    )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file; intervals as [low, high], or null for a single identity."""
        return {
            **asdict(self.values),
            "best_case": asdict(self.best),
            "intervals": {name: pair and list(pair) for name, pair in self.intervals.items()},
            "cmc": self.cmc.tolist(),
            "counts": self.counts,
        }


def evaluate_reid(
    query: FeatureSet,
    gallery: FeatureSet,
    *,
    distance: str | QuadraticMetric = "euclidean",
    rerank: Rerank | None = None,
    unit: bool = True,
    no_match: NoMatch = "skip",
    exclude_same_camera: bool = True,
    seed: int = 0,
) -> ReidResult:
    """Score ``query`` (Q) against ``gallery`` (G) by the Market-1501 protocol.

    Memory beyond the inputs stays at two copies of the features, whatever Q is; re-ranking adds (Q, G)
    float32. Junk leaves the gallery before anything is computed, so it cannot change a digit.

    Args:
        distance: a key of reposer.reid.distances.DISTANCES, or a fitted KISSME or XQDA.
        rerank: re-rank k-reciprocally first (transductive: all queries are used together).
        unit: bring every feature to length 1 first, as the published numbers do.
        no_match: queries without a valid match are left out of the mean (``skip``) or count 0 (``zero``,
            as in the MATLAB code); their number is in ``counts`` either way.
        exclude_same_camera: see RetrievalProtocol.
        seed: of the bootstrap.

    Raises:
        UserError: NaN, infinite or zero features, an empty set, bad labels, no query with a valid match, an
            unknown distance.
    """
    query, gallery = checked(query, "query", unit), checked(gallery, "gallery", unit)
    protocol = RetrievalProtocol(
        query.pids, query.camids, gallery.pids, gallery.camids, exclude_same_camera=exclude_same_camera
    )
    counted = gallery.features if len(protocol.kept) == len(gallery) else gallery.features[protocol.kept]
    if rerank is None:
        scores = score_form(pairwise_form(query.features, counted, distance), protocol)
        return summarize(scores, protocol, no_match=no_match, seed=seed)
    left, right = (_euclidean_space(x, distance) for x in (query.features, counted))
    reranked = k_reciprocal(left, right, **asdict(rerank))
    result = summarize(protocol.score(reranked), protocol, no_match=no_match, seed=seed)
    order, values = nearest_columns(reranked, LISTED)
    return replace(result, ranking=flagged(protocol.kept[order], values, query.pids, query.camids, gallery))


def score_form(form: PairwiseForm, protocol: RetrievalProtocol) -> QueryScores:
    """Distances and scores block by block: the (Q, G) matrix never exists as a whole."""
    return concatenate([protocol.score(block, start) for start, block in form.blocks()])


def summarize(
    scores: QueryScores, protocol: RetrievalProtocol, *, no_match: NoMatch = "skip", seed: int = 0
) -> ReidResult:
    """Means, tie bracket, intervals and counts of per-query scores."""
    chosen = denominator(scores, no_match)
    values = {name: value[chosen] for name, value in per_query(scores.worst).items()}
    intervals = _intervals(values, protocol.query_pids[chosen], seed)
    gallery_pids = protocol.gallery_pids
    counts = {
        "queries": len(chosen),
        "queries_with_valid_match": int((scores.hits > 0).sum()),
        "queries_in_mean": int(chosen.sum()),
        "query_identities": len(np.unique(protocol.query_pids)),
        "gallery": len(gallery_pids),
        "gallery_junk": int((gallery_pids == JUNK).sum()),
        "gallery_distractors": int((gallery_pids == DISTRACTOR).sum()),
        "valid_matches": int(scores.hits.sum()),
        "tied_matches": int(scores.tied_hits.sum()),
        "queries_with_ties": int((scores.tied_hits > 0).sum()),
    }
    return ReidResult(
        values=mean_values(scores, "worst", no_match),
        best=mean_values(scores, "best", no_match),
        intervals=intervals,
        cmc=cmc_curve(scores, no_match=no_match),
        counts=counts,
        scores=scores,
    )


def _intervals(
    values: dict[str, NDArray[np.float64]], pids: NDArray[np.int64], seed: int
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap of every mean over the same draws of whole identities; None with a single one."""
    _, member = np.unique(pids, return_inverse=True)
    counts = np.bincount(member)
    if len(counts) < 2:
        return dict.fromkeys(values)
    draws = bootstrap_weights(len(counts), None, REPEATS, seed)
    drawn = draws @ counts
    means = {name: draws @ np.bincount(member, value) / drawn for name, value in values.items()}
    points = {name: np.quantile(mean, LEVELS) for name, mean in means.items()}
    return {name: (float(low), float(high)) for name, (low, high) in points.items()}


def _euclidean_space(features: NDArray[np.float32], distance: str | QuadraticMetric) -> NDArray[np.float32]:
    """Features whose Euclidean distance ranks like ``distance``; re-ranking starts from it."""
    if isinstance(distance, QuadraticMetric):
        return distance.transform(features)
    return normalize(features) if known_distance(distance) == "cosine" else features
