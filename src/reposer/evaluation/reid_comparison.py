"""Several Re-ID methods on the same features, side by side: the report, its Markdown, its JSON.

A method is a distance (euclidean, cosine) or a learned one (xqda, kissme, and their published procedures),
each with and without re-ranking. No number appears without its protocol, its counts and its interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from reposer.errors import UserError, find
from reposer.evaluation.reid_protocols import MARKET, ReidProtocol
from reposer.evaluation.reidentification import (
    Expansion,
    ReidResult,
    Rerank,
    evaluate_reid,
    mean_over_splits,
)
from reposer.metrics.retrieval import JUNK, NoMatch
from reposer.metrics.verification import FALSE_RATES
from reposer.reid.distances import DISTANCES
from reposer.reid.metric_learners import KISSME, XQDA
from reposer.reid.quadratic import QuadraticMetric
from reposer.reid.search import checked, with_cameras
from reposer.sections import markdown_row
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.storage.paths import made_folder
from reposer.structures import FeatureSet

SCHEMA_VERSION = 1
REPORT_FILE, TABLE_FILE = "reidentification.json", "reidentification.md"
RERANKED = " + re-ranking"
EXPANDED = " + query expansion"
COLUMNS = ("rank1", "rank5", "rank10", "rank20", "mAP_step", "mAP_trapezoid", "mINP")

ROC_COLUMNS = (
    *(f"TPR at FPR {rate:g}" for rate in FALSE_RATES),
    *("AUC", "EER", "genuine pairs", "impostor pairs"),
)

LEARNERS: dict[str, Callable[[int], QuadraticMetric]] = {
    "xqda": lambda seed: XQDA(),
    "kissme": lambda seed: KISSME(),
    "xqda_reference": lambda seed: XQDA(reference=True, seed=seed),
    "kissme_reference": lambda seed: KISSME(reference=True, seed=seed),
}


@dataclass(frozen=True)
class ReidReport:
    """Results by method name, what was learned on the way, and how to read it."""

    results: dict[str, ReidResult]
    missing: dict[str, str]  # method -> why it has no result
    learned: dict[str, dict[str, Any]]  # learned method -> its ridge, condition numbers, pairs
    protocol: str
    notes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, QuadraticMetric] = field(default_factory=dict)  # learned method -> what was fitted
    pictures: dict[str, str] = field(default_factory=dict)  # file beside the report -> its caption

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-query values and the metrics themselves, in JSON's types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "methods": {name: result.to_json() for name, result in self.results.items()},
            "missing": self.missing,
            "learned": self.learned,
            "protocol": self.protocol,
            "notes": list(self.notes),
            "settings": self.settings,
            "pictures": self.pictures,
        }

    def to_markdown(self) -> str:
        """The table in percent with intervals, then protocol and notes."""
        lines = [markdown_row("method", *COLUMNS), markdown_row("---", *("---:" for _ in COLUMNS))]
        for name, result in self.results.items():
            lines.append(markdown_row(name, *(_cell(result, column) for column in COLUMNS)))
        lines += [markdown_row(name, *("not measured" for _ in COLUMNS)) for name in self.missing]
        verified = {name: result.roc for name, result in self.results.items() if result.roc is not None}
        if verified:
            lines += [
                "",
                markdown_row("pairs, one to one", *ROC_COLUMNS),
                markdown_row("---", *("---:" for _ in ROC_COLUMNS)),
            ]
        for name, roc in verified.items():
            rates = [f"{100 * roc.true_rates[f'{rate:g}']:.2f}" for rate in FALSE_RATES]
            sizes = (f"{roc.genuine:,}", f"{roc.impostor:,}")
            lines.append(markdown_row(name, *rates, f"{100 * roc.auc:.2f}", f"{100 * roc.eer:.2f}", *sizes))
        lines += ["", self.protocol, ""]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path | str) -> None:
        """Write reidentification.md and .json; each appears complete or not at all."""
        folder = Path(folder)
        made_folder(folder)
        claim_reid(folder)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        write_output(folder / TABLE_FILE, self.to_markdown().encode())
        write_output(folder / REPORT_FILE, text.encode())


def claim_reid(folder: Path, *more: str) -> None:
    """Refuse, before any work, to replace what no Re-ID evaluation wrote.

    Raises:
        UserError: as ``outputs.claim_outputs``.
    """
    older = is_older(folder / REPORT_FILE, holds_keys("methods", "missing", "protocol"))
    claim_outputs(folder, [TABLE_FILE, REPORT_FILE, *more], older=older)


class ScoringRules(TypedDict, total=False):
    """Keywords that every row of a report shares; see evaluate_reid, whose defaults hold."""

    protocol: ReidProtocol
    unit: bool
    no_match: NoMatch
    roc: bool
    exclude_same_camera: bool
    seed: int


DEFAULT_RULES: ScoringRules = {
    "protocol": MARKET,
    "unit": True,
    "no_match": "skip",
    "roc": False,
    "exclude_same_camera": True,
    "seed": 0,
}


def compare_methods(
    query: FeatureSet,
    gallery: FeatureSet,
    train: FeatureSet | None = None,
    *,
    methods: Sequence[str] = ("euclidean", "xqda", "kissme"),
    rerank: Rerank | None = None,
    expand: Expansion | None = None,
    **chosen: Unpack[ScoringRules],
) -> ReidReport:
    """Evaluate every method, and once more with query expansion (``expand``) and re-ranked (``rerank``).

    Args:
        train: features of other people, from the same network; learned methods are fitted on it.
        methods: keys of DISTANCES or LEARNERS.
        rerank, expand, chosen: see evaluate_reid; the seed is also that of sampled pairs.

    Raises:
        UserError: an unknown method, a learned one without ``train``, training and test sets that share a
            person, and all that evaluate_reid refuses.
    """
    for name in methods or ("",):
        find("Re-ID method", name, {**DISTANCES, **LEARNERS})
    rules: ScoringRules = {**DEFAULT_RULES, **chosen}
    protocol, unit, exclude_same_camera = rules["protocol"], rules["unit"], rules["exclude_same_camera"]
    query, gallery = checked(query, "query", unit), checked(gallery, "gallery", unit)
    query, gallery, notes = _cameras(query, gallery, protocol, exclude_same_camera)
    learned = {name: LEARNERS[name](rules["seed"]) for name in methods if name in LEARNERS}
    if learned:
        (train,), cameras = with_cameras(_training_set(train, query, gallery, unit))
        notes += [f"Training images: {cameras}"] if cameras else []
        for learner in learned.values():
            learner.fit(train.features, train.pids, train.camids)
    results: dict[str, ReidResult] = {}
    missing: dict[str, str] = {}
    for name in methods:
        metric = learned.get(name)
        for row, step in _steps(name, rerank, expand):
            if isinstance(step, Rerank) and metric is not None and (metric.weights_ < 0).any():
                missing[row] = "the published procedure gave no positive metric, so no neighborhoods"
                continue
            results[row] = evaluate_reid(
                query,
                gallery,
                distance=name if metric is None else metric,
                rerank=step if isinstance(step, Rerank) else None,
                expand=step if isinstance(step, Expansion) else None,
                **rules,
            )
    settings = dict(rules) | {
        "protocol": asdict(protocol),
        "feature_size": query.features.shape[1],
        "rerank": asdict(rerank) if rerank else None,
        "expand": asdict(expand) if expand else None,
        "training_images": len(train) if learned and train is not None else 0,
    }
    return ReidReport(
        results=results,
        missing=missing,
        learned={name: _what_was_learned(metric) for name, metric in learned.items()},
        protocol=_protocol(protocol, unit, rules["no_match"], exclude_same_camera),
        notes=(
            *notes,
            *_notes(next(iter(results.values())), results, missing, learned, rerank, expand),
        ),
        settings=settings,
        metrics=learned,
    )


def _cameras(
    query: FeatureSet, gallery: FeatureSet, protocol: ReidProtocol, exclude_same_camera: bool
) -> tuple[FeatureSet, FeatureSet, list[str]]:
    """The sets with a number for every camera, and notes on unknown ones and on queries that can find nobody
    since the whole gallery is of their own camera."""
    if protocol.by_camera:
        return query, gallery, []
    (query, gallery), unknown = with_cameras(query, gallery)
    notes = [unknown] if unknown else []
    cameras = np.unique(gallery.camids[gallery.pids != JUNK])
    own = int(np.isin(query.camids, cameras).sum())
    if exclude_same_camera and len(cameras) == 1 and own:
        notes.append(
            f"All gallery images are of camera {cameras[0]}: the {own:,} queries of it have no valid match."
        )
    return query, gallery, notes


def _steps(
    name: str, rerank: Rerank | None, expand: Expansion | None
) -> list[tuple[str, Rerank | Expansion | None]]:
    """The rows of a method and what each does beyond it."""
    rows: list[tuple[str, Rerank | Expansion | None]] = [(name, None)]
    rows += [(name + EXPANDED, expand)] if expand else []
    return rows + ([(name + RERANKED, rerank)] if rerank else [])


def row_names(methods: Sequence[str], reranked: bool, expanded: bool = False) -> list[str]:
    """The rows that :func:`compare_methods` makes of methods, in their order."""
    rerank, expand = Rerank() if reranked else None, Expansion() if expanded else None
    return [row for name in methods for row, _ in _steps(name, rerank, expand)]


def mean_report(reports: Sequence[ReidReport], what: str) -> ReidReport:
    """Reports of several splits as one, with means and standard deviations in its cells.

    Args:
        what: the splits are, for the note: "folds", "files".

    A row is the mean over all splits or is missing, with a line that names the first split without it.
    """
    first = reports[0]
    rows = dict.fromkeys(row for report in reports for row in (*report.results, *report.missing))
    missing: dict[str, str] = {}
    for row in rows:
        without = [i for i, report in enumerate(reports) if row not in report.results]
        if without:
            why = reports[without[0]].missing.get(row, "no training people there")
            missing[row] = (
                f"missing in {len(without)} of {len(reports)} {what}, first in number {without[0] + 1}: {why}"
            )
    results = {
        row: mean_over_splits([report.results[row] for report in reports])
        for row in rows
        if row not in missing
    }
    sizes = [_queries(report.results[row]) for report in reports for row in [*results][:1]]
    span = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
    note = (
        f"Means over {len(reports)} {what} of {span} queries each, with the standard deviation (n - 1)"
        " between them. They share people, so it is no error of the mean."
    )
    fits = [f"{row}: not measured: {why}." for row, why in missing.items()]
    return replace(
        first,
        results=results,
        missing=missing,
        learned={
            f"{name}, {what} {i}": text for i, r in enumerate(reports) for name, text in r.learned.items()
        },
        notes=(note, *fits),
        settings=first.settings | {"splits": len(reports)},
        metrics={},
    )


def _queries(result: ReidResult, name: str = "queries") -> int:
    """A count of queries, which trials count once each, in one trial."""
    return result.counts[name] // result.counts.get("trials", 1)


def _training_set(train: FeatureSet | None, query: FeatureSet, gallery: FeatureSet, unit: bool) -> FeatureSet:
    if train is None:
        raise UserError(
            "learned distances need features of training people",
            "give a training set, or choose among the methods " + ", ".join(DISTANCES),
        )
    train = checked(train, "training set", unit)
    tested = np.union1d(query.pids, gallery.pids[gallery.pids > 0])
    shared = np.intersect1d(train.pids[train.pids > 0], tested)
    if len(shared):
        raise UserError(
            f"{len(shared)} people are in the training set and in the test set (person {shared[0]}, ...)",
            "train on other people, or number them apart if these are different people",
        )
    return train


def _what_was_learned(metric: QuadraticMetric) -> dict[str, Any]:
    """The attributes that tell whether the fit can be trusted; an infinite condition number as text."""
    conditions = {
        name: value if np.isfinite(value) else "inf"
        for name, value in (
            ("condition_number", metric.condition_number_),
            ("condition_number_before_ridge", metric.condition_number_before_),
        )
    }
    return {
        "parameters": metric.get_params(),
        "ridge": metric.ridge_,
        **conditions,
        "directions": len(metric.weights_),
        "similar_pairs": metric.similar_pairs_,
        "dissimilar_pairs": metric.dissimilar_pairs_,
    }


def _protocol(protocol: ReidProtocol, unit: bool, no_match: NoMatch, exclude_same_camera: bool) -> str:
    own = "left out for that query" if exclude_same_camera else "kept (not the published protocol)"
    without = "left out of every mean" if no_match == "skip" else "counted as 0"
    each = "of each person and camera" if protocol.per_camera else "of each person"
    drawn = (
        f" Every number is the mean over {protocol.trials} trials, each with {protocol.shots} random gallery"
    )
    drawn += f" image{'s' if protocol.shots > 1 else ''} {each}."
    return (
        f"{protocol.words}: features {'of length 1' if unit else 'as they are'}; junk (pid -1) removed;"
        " distractors (pid 0)"
        f" count as negatives; images of the query's person from its own camera {own}; queries without a"
        f" valid match {without}; ties count against the query. mAP_step is the mean of precision at the hits"
        " (torchreid, fast-reid), mAP_trapezoid the original MATLAB code's."
        + (drawn if protocol.shots else "")
        + " Intervals: 95 %, bootstrap over query identities."
    )


def _notes(
    first: ReidResult,
    results: dict[str, ReidResult],
    missing: dict[str, str],
    learned: dict[str, QuadraticMetric],
    rerank: Rerank | None,
    expand: Expansion | None,
) -> list[str]:
    counts = first.counts
    notes = [
        f"{_queries(first):,} queries of {counts['query_identities']:,} people,"
        f" {_queries(first, 'queries_with_valid_match'):,} with a valid match; gallery of"
        f" {counts['gallery']:,} images, of which {counts['gallery_distractors']:,} are distractors and"
        f" {counts['gallery_junk']:,} junk."
    ]
    for name, result in results.items():
        if result.counts["tied_matches"]:
            best, worst = result.best, result.values
            notes.append(
                f"{name}: {result.counts['tied_matches']:,} matches tie with a negative; with ties counted"
                f" for the query rank1 is {100 * best.rank1:.2f} instead of {100 * worst.rank1:.2f},"
                f" mAP_step {100 * best.mAP_step:.2f} instead of {100 * worst.mAP_step:.2f}."
            )
    for name, metric in learned.items():
        notes.append(
            f"{name}: {len(metric.weights_)} directions from {metric.similar_pairs_:,} similar and"
            f" {metric.dissimilar_pairs_:,} dissimilar pairs; ridge {metric.ridge_:.3g}, condition number"
            f" {metric.condition_number_:.3g} ({metric.condition_number_before_:.3g} without it)."
        )
    twins = {name: metric for name, metric in learned.items() if name in ("xqda", "kissme")}
    if len(twins) == 2 and twins["kissme"].n_components_ == len(twins["xqda"].mean_):
        notes.append(
            f"xqda and kissme coincide: over all pairs they differ only by KISSME's"
            f" {KISSME().n_components} principal components, and these features are fewer."
        )
    for name, result in results.items():
        if result.deviations is not None:
            spread = ", ".join(f"{key} {100 * result.deviations[key]:.2f}" for key in ("rank1", "mAP_step"))
            notes.append(f"{name}: standard deviation between trials: {spread}.")
    if expand:
        near = min(expand.count, counts["gallery"] - counts["gallery_junk"])
        notes.append(
            f"Query expansion: each query is the sum of itself and its {near} nearest gallery images,"
            f" weighted by similarity to the power {expand.alpha:g}."
        )
    if rerank:
        variant = "" if rerank.variant == "zhong" else f", variant {rerank.variant}"
        notes.append(
            f"Re-ranking (k1 = {rerank.k1}, k2 = {rerank.k2}, lambda = {rerank.weight}{variant}) is"
            " transductive: the rank list of one query depends on all other queries."
        )
    return notes + [f"{name}: not measured: {why}." for name, why in missing.items()]


def _cell(result: ReidResult, column: str) -> str:
    text = f"{100 * getattr(result.values, column):.2f}"
    interval = result.intervals[column]
    if interval is None and result.deviations is not None:
        return f"{text} ± {100 * result.deviations[column]:.2f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
