"""Retrieval scores of Re-ID, per query first: CMC, average precision (step and trapezoid), mINP.

Protocol of Market-1501 (Zheng et al., ICCV 2015), which DukeMTMC-reID, MSMT17 and CUHK03-NP share: junk
(pid -1) is taken out of the gallery; images of the query's own person from its own camera are taken out for
that query; distractors (pid 0) stay and count against it.

Two average precisions are in use and differ by 0.5 to 2.7 points. For the k-th hit at rank r:
``step`` adds k/r (torchreid, fast-reid, scikit-learn >= 0.19); ``trapezoid`` adds the mean of k/r and
(k-1)/(r-1), the latter 1 at rank 1 (the authors' MATLAB code, DG-Net, CamStyle). Both are computed, always.

Ties: a negative at exactly a hit's distance counts as ranked before it in the headline (``worst``) and after
it in ``best``; the order of the gallery never decides.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.arrays import ordered_array, whole_labels
from reposer.errors import UserError

JUNK, DISTRACTOR = -1, 0  # pids
UNKNOWN_CLOTHES = -1
Clothes = Literal["any", "changed", "same"]
_BLOCK_BYTES = 8 << 20  # rows are copied and sorted in blocks that stay in the cache


@dataclass(frozen=True, slots=True)
class HitScores:
    """What the ranks of the hits say, under one rule for ties. NaN (first_hit: 0) without a valid match."""

    first_hit: NDArray[np.int64]  # (Q,) rank of the nearest hit, from 1
    ap_step: NDArray[np.float64]  # (Q,)
    ap_trapezoid: NDArray[np.float64]  # (Q,)
    inp: NDArray[np.float64]  # (Q,) hits / rank of the last hit (Ye et al., "AGW", TPAMI 2021)


@dataclass(frozen=True, slots=True)
class QueryScores:
    """Scores of Q queries, one value each, so that intervals and galleries of failures come for free."""

    worst: HitScores  # ties count against the query: the headline
    best: HitScores  # ties count for the query
    hits: NDArray[np.int64]  # (Q,) valid matches in the gallery
    tied_hits: NDArray[np.int64]  # (Q,) hits at exactly the distance of a negative
    valid: NDArray[np.int64]  # (Q,) gallery images that count


class RetrievalProtocol:
    """The labels of one query set and gallery, indexed once; scores blocks of their distance matrix.

    Args:
        query_pids, query_camids: (Q,) raw labels of the queries.
        gallery_pids, gallery_camids: (G,) of the gallery; -1 junk, 0 distractor.
        exclude_same_camera: False keeps the query's person from its own camera (not the published protocol).
        scenes: (Q,) a second camera of each query, whose images of the person do not count either.
        query_clothes, gallery_clothes: (Q,) and (G,) numbers of outfits, for ``clothes``.
        clothes: which other images of the query's person are searched for: those in any clothes, in others
            (``changed``: LTCC's cloth-changing setting) or in the same ones; the rest is taken out.

    Labels may have any dtype that holds whole numbers.

    Raises:
        UserError: no query, no gallery image that counts, labels of another length, a query labeled junk or
            distractor, a gallery image of a person below -1, a rule about clothes without their numbers.
    """

    def __init__(
        self,
        query_pids: NDArray[np.int64],
        query_camids: NDArray[np.int64],
        gallery_pids: NDArray[np.int64],
        gallery_camids: NDArray[np.int64],
        *,
        exclude_same_camera: bool = True,
        scenes: NDArray[np.int64] | None = None,
        query_clothes: NDArray[np.int64] | None = None,
        gallery_clothes: NDArray[np.int64] | None = None,
        clothes: Clothes = "any",
    ) -> None:
        self.query_pids = whole_labels(query_pids, "query pids")
        self.query_camids = whole_labels(query_camids, "query camids")
        self.gallery_pids = whole_labels(gallery_pids, "gallery pids")
        self.gallery_camids = whole_labels(gallery_camids, "gallery camids")
        self.exclude_same_camera, self.clothes = exclude_same_camera, clothes
        self._scenes = None if scenes is None else whole_labels(scenes, "query scenes")
        self._check()
        if clothes != "any":
            self._query_clothes = _outfits(query_clothes, "query", self.query_pids)
            self._gallery_clothes = _outfits(gallery_clothes, "gallery", self.gallery_pids)
        self.kept = np.flatnonzero(self.gallery_pids != JUNK)  # columns that count for some query
        self._hits, self._own_camera = self._same_person()

    def _check(self) -> None:
        for side in ("query", "gallery"):
            pids, camids = getattr(self, f"{side}_pids"), getattr(self, f"{side}_camids")
            if pids.ndim != 1 or pids.shape != camids.shape:
                problem = f"{side}: {pids.shape} person labels for {camids.shape} camera labels"
                raise UserError(problem, "give one person and one camera number for each image")
            if (pids == JUNK).all():  # also when empty
                raise UserError(f"the {side} holds no image that counts", f"give at least one {side} image")
        bad = np.flatnonzero(self.query_pids <= DISTRACTOR)
        if len(bad):
            raise UserError(
                f"query row {bad[0]}: person {self.query_pids[bad[0]]} ({len(bad)} such rows); -1 means junk"
                " and 0 distractor, neither can be searched for",
                "number the people from 1, or take these rows out of the query set",
            )
        bad = np.flatnonzero(self.gallery_pids < JUNK)
        if len(bad):
            raise UserError(
                f"gallery row {bad[0]}: person {self.gallery_pids[bad[0]]} ({len(bad)} such rows); -1 means"
                " junk and 0 distractor, no other number below 1 is a person",
                "number the people from 1, or write -1 for what must not count",
            )

    def _same_person(self) -> tuple[_Cells, _Cells]:
        """Cells (query, position in ``kept``) of valid matches, and of the person's images that are out."""
        pids, camids = self.gallery_pids[self.kept], self.gallery_camids[self.kept]
        by_pid = np.argsort(pids, kind="stable")
        start = np.searchsorted(pids, self.query_pids, "left", sorter=by_pid)
        sizes = np.searchsorted(pids, self.query_pids, "right", sorter=by_pid) - start
        query = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        column = by_pid[np.repeat(start, sizes) + within]
        own = camids[column] == self.query_camids[query]
        out = own if self.exclude_same_camera else np.zeros_like(own)
        if self._scenes is not None:
            out = out | (camids[column] == self._scenes[query])
        if self.clothes != "any":
            same = self._gallery_clothes[self.kept][column] == self._query_clothes[query]
            out = out | (same if self.clothes == "changed" else ~same)
        queries = len(self.query_pids)
        return _cells(query[~out], column[~out], queries), _cells(query[out], column[out], queries)

    def score(self, distance: NDArray[np.floating], first_query: int = 0) -> QueryScores:
        """Scores of queries ``first_query`` and on, from their rows of distances, smaller is closer.

        Time is that of sorting the values once (no argsort): O(q G log G). ``distance`` is not changed.

        Args:
            distance: (q, G) to the whole gallery, or (q, len(kept)) to the images that count for some query;
                of any real dtype.

        Raises:
            UserError: a distance that counts is NaN or infinite, or the shape does not fit the labels.
        """
        distance = ordered_array(distance, "distances")
        if distance.ndim != 2:
            raise UserError(f"a distance matrix of shape {distance.shape}", "give (Q, G) distances")
        rows, columns = distance.shape
        fits = columns in (len(self.gallery_pids), len(self.kept))
        if not fits or first_query + rows > len(self.query_pids):
            expected = f"{len(self.query_pids)} queries and {len(self.gallery_pids)} gallery images"
            raise UserError(
                f"a distance matrix of shape {distance.shape} for {expected}", "give (Q, G) distances"
            )
        step = max(1, _BLOCK_BYTES // (distance.itemsize * max(columns, 1)))
        starts = range(0, rows, step)

        def part(start: int) -> QueryScores:
            return self._score_block(distance[start : start + step], first_query + start)

        if len(starts) < 2:
            return part(0)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # sorting releases the interpreter's lock
            return concatenate(list(pool.map(part, starts)))

    def pairs(
        self, distance: NDArray[np.floating], first_query: int = 0
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Distances of all genuine and of all impostor pairs of a block as of :meth:`score`, unordered.

        Genuine: a query with a valid match; impostor: with an image of somebody else, distractors too.
        """
        distance = ordered_array(distance, "distances")
        work = distance if len(self.kept) == distance.shape[1] else distance[:, self.kept]
        row, column, _ = self._hits.of(first_query, len(work))
        out_row, out_column, _ = self._own_camera.of(first_query, len(work))
        impostor = np.ones(work.shape, bool)
        impostor[row, column] = impostor[out_row, out_column] = False
        return work[row, column], work[impostor]

    def person_ranks(self, distance: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(Q,) rank of each query's person among the persons of the gallery, each at its nearest image that
        counts; 0 without a valid match. The first array with ties against the query, the second for it.

        A distractor is a person of its own.

        Args:
            distance: (Q, G) or (Q, len(kept)), all queries.
        """
        distance = ordered_array(distance, "distances")
        work = np.array(distance if len(self.kept) == distance.shape[1] else distance[:, self.kept])
        queries = len(work)
        row, column, _ = self._own_camera.of(0, queries)
        work[row, column] = np.inf
        keys = self.gallery_pids[self.kept].copy()
        alone = np.flatnonzero(keys == DISTRACTOR)
        keys[alone] = -2 - np.arange(len(alone))
        order = np.argsort(keys, kind="stable")
        people, starts = np.unique(keys[order], return_index=True)
        nearest = np.minimum.reduceat(work[:, order], starts, axis=1)  # (Q, people)
        place = np.minimum(np.searchsorted(people, self.query_pids), len(people) - 1)
        own = nearest[np.arange(queries), place][:, None]
        counts = np.diff(self._hits.ends)
        upto, below = (nearest <= own).sum(axis=1), (nearest < own).sum(axis=1) + 1
        return np.where(counts > 0, upto, 0), np.where(counts > 0, below, 0)

    def _score_block(self, distance: NDArray[np.floating], first_query: int) -> QueryScores:
        whole = len(self.kept) == distance.shape[1]
        work = np.array(distance, order="C") if whole else distance[:, self.kept]
        row, column, counts = self._hits.of(first_query, len(work))
        hits = work[row, column]
        hits = hits[np.lexsort((hits, row))]
        out_row, out_column, out_counts = self._own_camera.of(first_query, len(work))
        work[out_row, out_column] = np.inf  # sorted behind everything that counts
        valid = work.shape[1] - out_counts
        work.sort(axis=1)
        _refuse_non_finite(work, valid, first_query)
        worst, best = _ranks(work, hits, counts)
        tied = np.bincount(row, worst != best, minlength=len(work)).astype(np.int64)
        return QueryScores(_hit_scores(worst, counts), _hit_scores(best, counts), counts, tied, valid)


def _outfits(values: NDArray[np.int64] | None, side: str, pids: NDArray[np.int64]) -> NDArray[np.int64]:
    advice = "add the column clothes to the features, or choose another protocol"
    if values is None:
        raise UserError(f"the {side} has no numbers of clothes, which this protocol needs", advice)
    labels = whole_labels(values, f"{side} clothes")
    if labels.shape != pids.shape:
        problem = f"{side}: {labels.shape} numbers of clothes for {pids.shape} images"
        raise UserError(problem, "give one for each image")
    unknown = np.flatnonzero((labels == UNKNOWN_CLOTHES) & (pids > DISTRACTOR))
    if len(unknown):
        problem = f"{side} row {unknown[0]}: clothes unknown (-1; {len(unknown)} such rows)"
        raise UserError(problem, advice)
    return labels


class _Cells(NamedTuple):
    """Cells of the (Q, G) matrix, by query."""

    column: NDArray[np.int64]
    ends: NDArray[np.int64]  # (Q + 1,) query q owns ends[q] to ends[q + 1]

    def of(self, first: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Row (from 0) and column of the cells of queries ``first`` and on, and how many each query has."""
        ends = self.ends[first : first + rows + 1]
        counts = np.diff(ends)
        return np.repeat(np.arange(rows), counts), self.column[ends[0] : ends[-1]], counts


def _cells(query: NDArray[np.int64], column: NDArray[np.int64], queries: int) -> _Cells:
    return _Cells(column, np.append(0, np.cumsum(np.bincount(query, minlength=queries))))


def _ranks(
    ordered: NDArray[np.floating], hits: NDArray[np.floating], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks from 1 of all hits, ascending within each query: with ties against them, with ties for them."""
    upto, below = np.empty(len(hits), np.int64), np.empty(len(hits), np.int64)
    ends = np.cumsum(counts)
    for values, start, end in zip(ordered, (ends - counts).tolist(), ends.tolist(), strict=True):
        upto[start:end] = values.searchsorted(hits[start:end], "right")
        below[start:end] = values.searchsorted(hits[start:end], "left")
    # Runs of equal hits of one query: how many of its hits are nearer, and how many are as near.
    query = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(hits)) - (ends - counts)[query]
    new = np.ones(len(hits), bool)
    new[1:] = (hits[1:] != hits[:-1]) | (query[1:] != query[:-1])
    run = np.cumsum(new) - 1
    nearer, equal = place[new][run], np.bincount(run)[run] if len(run) else run
    return upto - nearer - equal + place + 1, below - nearer + place + 1


def _hit_scores(ranks: NDArray[np.int64], counts: NDArray[np.int64]) -> HitScores:
    """Scores from the ranks of all hits, ascending within each query; ``counts`` (Q,) hits a query."""
    queries = len(counts)
    query = np.repeat(np.arange(queries), counts)
    ends = np.cumsum(counts)
    k = np.arange(1, len(ranks) + 1) - np.repeat(ends - counts, counts)
    at_hit = k / ranks
    before = np.where(ranks == 1, 1.0, (k - 1) / np.maximum(ranks - 1, 1))
    some = counts > 0
    first, last = np.zeros(queries, np.int64), np.ones(queries, np.int64)
    first[some], last[some] = ranks[(ends - counts)[some]], ranks[ends[some] - 1]
    divisor = np.where(some, counts, np.nan)
    return HitScores(
        first_hit=first,
        ap_step=np.bincount(query, at_hit, queries) / divisor,
        ap_trapezoid=np.bincount(query, (at_hit + before) / 2, queries) / divisor,
        inp=divisor / last,
    )


def _refuse_non_finite(ordered: NDArray[np.floating], valid: NDArray[np.int64], first_query: int) -> None:
    """Rows are sorted: NaN would stand at the very end, infinities at the ends of what counts."""
    last = ordered[np.arange(len(ordered)), np.maximum(valid, 1) - 1]
    bad = np.isnan(ordered[:, -1]) | ((valid > 0) & ~(np.isfinite(ordered[:, 0]) & np.isfinite(last)))
    if bad.any():
        row = first_query + int(np.flatnonzero(bad)[0])
        raise UserError(
            f"query row {row}: some of its distances are NaN or infinite ({int(bad.sum())} such rows)",
            "check the features: a network that diverged or a division by zero leaves such values",
        )


def concatenate(parts: list[QueryScores]) -> QueryScores:
    """Scores of consecutive blocks of queries as one."""

    def joined(which: str) -> HitScores:
        sides = [getattr(part, which) for part in parts]
        fields = HitScores.__dataclass_fields__
        return HitScores(**{name: np.concatenate([getattr(side, name) for side in sides]) for name in fields})

    return QueryScores(
        worst=joined("worst"),
        best=joined("best"),
        hits=np.concatenate([part.hits for part in parts]),
        tied_hits=np.concatenate([part.tied_hits for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
    )


def reordered(scores: QueryScores, order: NDArray[np.int64]) -> QueryScores:
    """The scores of the queries at these positions."""

    def side(hits: HitScores) -> HitScores:
        return HitScores(**{name: getattr(hits, name)[order] for name in HitScores.__dataclass_fields__})

    return QueryScores(
        side(scores.worst),
        side(scores.best),
        scores.hits[order],
        scores.tied_hits[order],
        scores.valid[order],
    )


NoMatch = Literal["skip", "zero"]


@dataclass(frozen=True, slots=True)
class RetrievalValues:
    """The means over queries, fractions in [0, 1]."""

    rank1: float
    rank5: float
    rank10: float
    rank20: float
    mAP_step: float  # noqa: N815 - the field's own name
    mAP_trapezoid: float  # noqa: N815
    mINP: float  # noqa: N815


def denominator(scores: QueryScores, no_match: NoMatch) -> NDArray[np.bool_]:
    """(Q,) which queries enter the mean: those with a valid match, or (``zero``) all of them.

    Raises:
        UserError: no query has a valid match: there is nothing to measure, whatever the rule.
    """
    matched = scores.hits > 0
    if not matched.any():
        raise UserError(
            f"none of the {len(matched)} queries has a valid match (its person, seen by another camera)",
            "check the person and camera labels of both sets (one camera only? other identities?)",
        )
    return matched if no_match == "skip" else np.ones_like(matched)


def per_query(scores: HitScores) -> dict[str, NDArray[np.float64]]:
    """The (Q,) values whose means are the fields of :class:`RetrievalValues`; 0 without a valid match."""
    values = {
        f"rank{k}": ((scores.first_hit > 0) & (scores.first_hit <= k)).astype(np.float64)
        for k in (1, 5, 10, 20)
    }
    values |= {"mAP_step": scores.ap_step, "mAP_trapezoid": scores.ap_trapezoid, "mINP": scores.inp}
    return {name: np.nan_to_num(value) for name, value in values.items()}


def mean_values(
    scores: QueryScores, ties: Literal["worst", "best"] = "worst", no_match: NoMatch = "skip"
) -> RetrievalValues:
    """The headline numbers, with ties counted against (``worst``) or for (``best``) the query."""
    chosen = denominator(scores, no_match)
    side = scores.worst if ties == "worst" else scores.best
    return RetrievalValues(**{name: float(value[chosen].mean()) for name, value in per_query(side).items()})


def cmc_curve(scores: QueryScores, ranks: int = 50, no_match: NoMatch = "skip") -> NDArray[np.float64]:
    """(ranks,) share of queries whose first hit stands at rank k or before, k from 1; ties against the query.

    Past the end of a short gallery the curve stays at its last value (it is a cumulative share).
    """
    chosen = denominator(scores, no_match)
    first = scores.worst.first_hit[chosen]
    found = np.bincount(first[(first > 0) & (first <= ranks)], minlength=ranks + 1)[1:]
    return np.asarray(np.cumsum(found) / chosen.sum(), np.float64)
