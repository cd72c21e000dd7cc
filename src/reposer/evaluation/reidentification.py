"""Re-ID evaluation: features of a query set and a gallery to CMC, both mAPs, mINP, intervals and counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.errors import UserError
from reposer.evaluation.reid_protocols import MARKET, ReidProtocol, asked_rows, trial_parts
from reposer.metrics.intervals import REPEATS, bootstrap_weights, interval_of_mean
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
    reordered,
)
from reposer.metrics.verification import Pairs, Verification, mean_verification, verification
from reposer.reid.distances import PairwiseForm, normalize
from reposer.reid.quadratic import QuadraticMetric
from reposer.reid.rerank import Variant, k_reciprocal
from reposer.reid.search import (
    checked,
    expand_queries,
    flagged,
    nearest_columns,
    pairwise_form,
    with_cameras,
)
from reposer.structures import FeatureSet, Ranking

LISTED = 50  # gallery images of each query that a re-ranked result keeps


@dataclass(frozen=True, slots=True)
class Rerank:
    """The numbers of k-reciprocal re-ranking; see reposer.reid.rerank."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3  # of the original distance: the paper's lambda
    variant: Variant = "zhong"


@dataclass(frozen=True, slots=True)
class Expansion:
    """The numbers of query expansion; see reposer.reid.search.expand_queries."""

    count: int = 5  # nearest gallery images that are added to a query
    alpha: float = 0.0  # power of their similarity as weight; 0: all alike


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked: the queries that per-query scores belong to, trial by trial."""

    names: tuple[str, ...]  # (N,)
    pids: NDArray[np.int64]  # (N,)
    camids: NDArray[np.int64]  # (N,)
    trial: NDArray[np.int64]  # (N,) from 0

    @property
    def trials(self) -> int:
        return int(self.trial.max(initial=0)) + 1


@dataclass(frozen=True, slots=True)
class ReidResult:
    """Scores of one method. Fractions in [0, 1]; the headline counts ties against the query."""

    values: RetrievalValues  # means over trials where there are several
    best: RetrievalValues  # the same with ties counted for the query
    intervals: dict[str, tuple[float, float] | None]  # 95 %, bootstrap over query identities
    cmc: NDArray[np.float64]  # (50,)
    counts: dict[str, int]  # of all trials together where they count queries or matches
    scores: QueryScores  # per query, trial after trial
    asked: Asked
    deviations: dict[str, float] | None = None  # standard deviation (n - 1) over trials or splits
    roc: Verification | None = None
    ranking: Ranking | None = (
        None  # (Q, LISTED) of a re-ranked result, which cannot be searched again by query
    )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file; intervals as [low, high], or null for a single identity."""
        content = {
            **asdict(self.values),
            "best_case": asdict(self.best),
            "intervals": {name: pair and list(pair) for name, pair in self.intervals.items()},
            "cmc": self.cmc.tolist(),
            "counts": self.counts,
        }
        if self.deviations is not None:
            content["deviations"] = self.deviations
        if self.roc is not None:
            content["roc"] = asdict(self.roc) | {"curve": self.roc.curve.tolist()}
        return content


def evaluate_reid(
    query: FeatureSet,
    gallery: FeatureSet,
    *,
    distance: str | QuadraticMetric = "euclidean",
    rerank: Rerank | None = None,
    expand: Expansion | None = None,
    protocol: ReidProtocol = MARKET,
    unit: bool = True,
    no_match: NoMatch = "skip",
    exclude_same_camera: bool = True,
    roc: bool = False,
    scenes: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> ReidResult:
    """Score ``query`` (Q) against ``gallery`` (G) by a protocol, Market-1501's by default.

    Memory beyond the inputs stays at two copies of the features, whatever Q is; re-ranking adds (Q, G)
    float32. Junk leaves the gallery before anything is computed, so it cannot change a digit. Images of
    unknown camera are treated as ``reid.search.with_cameras`` says, except by protocols of single cameras.

    Args:
        distance: a key of reposer.reid.distances.DISTANCES, or a fitted KISSME or XQDA.
        rerank: re-rank k-reciprocally first (transductive: all queries are used together).
        expand: query expansion first.
        protocol: which queries meet which gallery images; where it draws samples every number is the mean
            over its trials.
        unit: bring every feature to length 1 first, as most published numbers do (LOMO's do not).
        no_match: queries without a valid match are left out of the mean (``skip``) or count 0 (``zero``,
            as in the MATLAB code); their number is in ``counts`` either way.
        exclude_same_camera: False keeps what the protocol would leave out for its camera.
        roc: also score pairs one to one, over all that the ranking counts.
        scenes: (Q,) a second camera of each query, as of its background; images of its person there do not
            count, like those of its own camera. The cameras of both sets must be known.
        seed: of the bootstrap and of the trials.

    Raises:
        UserError: NaN, infinite or zero features, an empty set, bad labels, no query with a valid match, an
            unknown distance, query expansion of features that keep their length.
    """
    if expand is not None and not unit:
        raise UserError("query expansion adds features of length 1", "leave one of the two options out")
    query, gallery = checked(query, "query", unit), checked(gallery, "gallery", unit)
    if not protocol.by_camera:
        (query, gallery), _ = with_cameras(query, gallery)
    protocol = replace(protocol, exclude_same_camera=protocol.exclude_same_camera and exclude_same_camera)
    trials: list[QueryScores] = []
    pairs: list[Pairs] = []
    order, ranking = asked_rows(protocol, query), None
    for trial in range(protocol.repeats):
        rows, scores = [], []
        for query_rows, gallery_rows in trial_parts(protocol, query, gallery, trial, seed):
            asking, found = _taken(query, query_rows), _taken(gallery, gallery_rows)
            if expand is not None:
                asking = expand_queries(asking, found, **asdict(expand))
            scene = None if scenes is None else scenes[query_rows]
            part = _scored(asking, found, distance, rerank, protocol, scene)
            rows.append(query_rows)
            scores.append(part.scores)
            pairs += [part.pairs] if roc else []
            if protocol.repeats == 1 and len(query_rows) == len(query):
                ranking = part.ranking
        trials.append(reordered(concatenate(scores), np.argsort(np.concatenate(rows), kind="stable")))
    asked = Asked(
        tuple(query.names[i] for i in order.tolist()) * len(trials),
        np.tile(query.pids[order], len(trials)),
        np.tile(query.camids[order], len(trials)),
        np.repeat(np.arange(len(trials)), len(order)),
    )
    result = summarize(trials, asked, gallery.pids, no_match=no_match, seed=seed)
    verified = verification(lambda: (both for part in pairs for both in part())) if roc else None
    return replace(result, ranking=ranking, roc=verified)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one set of queries and one gallery gave."""

    scores: QueryScores
    pairs: Pairs  # distances of genuine and impostor pairs, block by block
    ranking: Ranking | None = None


def _taken(features: FeatureSet, rows: NDArray[np.int64]) -> FeatureSet:
    """Those rows; the set itself, not a copy, where they are all of it."""
    return features if len(rows) == len(features) else features.rows(rows)


def _scored(
    query: FeatureSet,
    gallery: FeatureSet,
    distance: str | QuadraticMetric,
    rerank: Rerank | None,
    protocol: ReidProtocol,
    scenes: NDArray[np.int64] | None,
) -> _Part:
    labels = RetrievalProtocol(
        *(query.pids, query.camids, gallery.pids, gallery.camids),
        exclude_same_camera=protocol.exclude_same_camera,
        scenes=scenes,
        query_clothes=query.clothes,
        gallery_clothes=gallery.clothes,
        clothes=protocol.clothes,
    )
    counted = gallery.features if len(labels.kept) == len(gallery) else gallery.features[labels.kept]
    if rerank is None:
        form = pairwise_form(query.features, counted, distance)
        scores = score_form(form, labels)
        if protocol.by_person:
            scores = _by_person(scores, labels, form.matrix())
        return _Part(scores, partial(_form_pairs, form, labels))
    left, right = (_euclidean_space(x, distance) for x in (query.features, counted))
    reranked = k_reciprocal(left, right, **asdict(rerank))
    scores = labels.score(reranked)
    if protocol.by_person:
        scores = _by_person(scores, labels, reranked)
    order, values = nearest_columns(reranked, LISTED)
    ranking = flagged(labels.kept[order], values, query.pids, query.camids, gallery)
    return _Part(scores, lambda: [labels.pairs(reranked)], ranking)


def _form_pairs(
    form: PairwiseForm, labels: RetrievalProtocol
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    return (labels.pairs(block, start) for start, block in form.blocks())


def _by_person(scores: QueryScores, labels: RetrievalProtocol, distance: NDArray[np.floating]) -> QueryScores:
    """The scores with ranks of first hits among persons."""
    worst, best = labels.person_ranks(distance)
    return replace(
        scores, worst=replace(scores.worst, first_hit=worst), best=replace(scores.best, first_hit=best)
    )


def score_form(form: PairwiseForm, protocol: RetrievalProtocol) -> QueryScores:
    """Distances and scores block by block: the (Q, G) matrix never exists as a whole."""
    return concatenate([protocol.score(block, start) for start, block in form.blocks()])


def summarize(
    trials: list[QueryScores],
    asked: Asked,
    gallery_pids: NDArray[np.int64],
    *,
    no_match: NoMatch = "skip",
    seed: int = 0,
) -> ReidResult:
    """Means over trials of means over queries, tie bracket, intervals and counts.

    Args:
        trials: scores of each; one where nothing is drawn.
        asked: the queries of all of them.
        gallery_pids: (G,) of the whole gallery.
    """
    scores = concatenate(trials) if len(trials) > 1 else trials[0]
    chosen = denominator(scores, no_match)
    values = {name: value[chosen] for name, value in per_query(scores.worst).items()}
    means = [mean_values(trial, "worst", no_match) for trial in trials]
    counts = {
        "queries": len(chosen),
        "queries_with_valid_match": int((scores.hits > 0).sum()),
        "queries_in_mean": int(chosen.sum()),
        "query_identities": len(np.unique(asked.pids)),
        "gallery": len(gallery_pids),
        "gallery_junk": int((gallery_pids == JUNK).sum()),
        "gallery_distractors": int((gallery_pids == DISTRACTOR).sum()),
        "valid_matches": int(scores.hits.sum()),
        "tied_matches": int(scores.tied_hits.sum()),
        "queries_with_ties": int((scores.tied_hits > 0).sum()),
    }
    return ReidResult(
        values=mean_of(means),
        best=mean_of([mean_values(trial, "best", no_match) for trial in trials]),
        intervals=_intervals(values, asked.pids[chosen], seed),
        cmc=np.mean([cmc_curve(trial, no_match=no_match) for trial in trials], axis=0),
        counts=counts | ({"trials": len(trials)} if len(trials) > 1 else {}),
        scores=scores,
        asked=asked,
        deviations=deviations_of(means) if len(means) > 1 else None,
    )


def mean_of(values: list[RetrievalValues]) -> RetrievalValues:
    """Field by field."""
    if len(values) == 1:
        return values[0]
    parts = [asdict(value) for value in values]
    return RetrievalValues(**{name: float(np.mean([part[name] for part in parts])) for name in parts[0]})


def deviations_of(values: list[RetrievalValues]) -> dict[str, float]:
    """Standard deviation (n - 1) of each field."""
    parts = [asdict(value) for value in values]
    return {name: float(np.std([part[name] for part in parts], ddof=1)) for name in parts[0]}


def mean_over_splits(results: list[ReidResult]) -> ReidResult:
    """Several splits of one data set as one result: means, standard deviations, all queries of all of them.

    There are no intervals: the splits share people, so their queries are no sample of independent people.
    """
    first = results[0]
    values = [result.values for result in results]
    offset, trials = 0, []
    for result in results:
        trials.append(result.asked.trial + offset)
        offset += result.asked.trials
    asked = [result.asked for result in results]
    counts = {name: sum(result.counts[name] for result in results) for name in first.counts}
    return ReidResult(
        values=mean_of(values),
        best=mean_of([result.best for result in results]),
        intervals=dict.fromkeys(first.intervals),
        cmc=np.mean([result.cmc for result in results], axis=0),
        counts=counts | {"splits": len(results)},
        scores=concatenate([result.scores for result in results]),
        asked=Asked(
            tuple(name for one in asked for name in one.names),
            np.concatenate([one.pids for one in asked]),
            np.concatenate([one.camids for one in asked]),
            np.concatenate(trials),
        ),
        deviations=deviations_of(values) if len(values) > 1 else None,
        roc=mean_verification([result.roc for result in results if result.roc is not None]),
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
    return {
        name: interval_of_mean(draws @ np.bincount(member, value) / drawn, value, len(counts))
        for name, value in values.items()
    }


def _euclidean_space(features: NDArray[np.floating], distance: str | QuadraticMetric) -> NDArray[np.floating]:
    """Features whose Euclidean distance ranks like ``distance``; re-ranking starts from it."""
    if isinstance(distance, QuadraticMetric):
        return distance.transform(features)
    return normalize(features) if distance == "cosine" else features
