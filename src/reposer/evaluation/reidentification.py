"""Re-ID evaluation: features of a query set and a gallery to CMC, both mAPs, mINP, intervals and counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.metrics.intervals import mean_interval
from reposer.metrics.retrieval import (
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
from reposer.reid.distances import DISTANCES, PairwiseForm
from reposer.reid.search import checked
from reposer.structures import FeatureSet


@dataclass(frozen=True, slots=True)
class ReidResult:
    """Scores of one method. Fractions in [0, 1]; the headline counts ties against the query."""

    values: RetrievalValues
    best: RetrievalValues  # the same with ties counted for the query
    intervals: dict[str, tuple[float, float] | None]  # 95 %, bootstrap over query identities
    cmc: NDArray[np.float64]  # (50,)
    counts: dict[str, int]
    scores: QueryScores  # per query

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return {
            **asdict(self.values),
            "best": asdict(self.best),
            "intervals": self.intervals,
            "cmc": self.cmc.tolist(),
            "counts": self.counts,
        }


def evaluate_reid(
    query: FeatureSet,
    gallery: FeatureSet,
    *,
    distance: str = "euclidean",
    unit: bool = True,
    no_match: NoMatch = "skip",
    exclude_same_camera: bool = True,
    seed: int = 0,
) -> ReidResult:
    """Score ``query`` (Q) against ``gallery`` (G) by the Market-1501 protocol, in bounded memory.

    Args:
        distance: a key of reposer.reid.distances.DISTANCES.
        unit: bring every feature to length 1 first, as the published numbers do.
        no_match: queries without a valid match are left out of the mean (``skip``) or count 0 (``zero``,
            as in the MATLAB code); their number is in ``counts`` either way.
        exclude_same_camera: see RetrievalProtocol.
        seed: of the bootstrap.

    Raises:
        UserError: NaN, infinite or zero features, an empty set, bad labels, no query with a valid match.
    """
    query, gallery = checked(query, "query", unit), checked(gallery, "gallery", unit)
    protocol = RetrievalProtocol(
        query.pids, query.camids, gallery.pids, gallery.camids, exclude_same_camera=exclude_same_camera
    )
    form = DISTANCES[distance](query.features, gallery.features)
    return summarize(score_form(form, protocol), protocol, no_match=no_match, seed=seed)


def score_form(form: PairwiseForm, protocol: RetrievalProtocol) -> QueryScores:
    """Distances and scores block by block: the (Q, G) matrix never exists as a whole."""
    return concatenate([protocol.score(block, start) for start, block in form.blocks()])


def summarize(
    scores: QueryScores, protocol: RetrievalProtocol, *, no_match: NoMatch = "skip", seed: int = 0
) -> ReidResult:
    """Means, tie bracket, intervals and counts of per-query scores."""
    chosen = denominator(scores, no_match)
    pids = protocol.query_pids[chosen]
    intervals = {
        name: mean_interval(value[chosen], pids, seed) for name, value in per_query(scores.worst).items()
    }
    gallery_pids = protocol.gallery_pids
    counts = {
        "queries": len(chosen),
        "queries_with_valid_match": int((scores.hits > 0).sum()),
        "queries_in_mean": int(chosen.sum()),
        "query_identities": len(np.unique(protocol.query_pids)),
        "gallery": len(gallery_pids),
        "gallery_junk": int((gallery_pids == JUNK).sum()),
        "gallery_distractors": int((gallery_pids == 0).sum()),
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
