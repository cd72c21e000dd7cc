"""Re-ID scores of a network or of feature files, with everything there is to look at: ``reposer reid``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.data.layouts.tables import split_words
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError, known
from reposer.evaluation.plots import MAPS, PictureOf, check_map, draw_cmc, draw_map, write_rank_lists
from reposer.evaluation.reid_comparison import (
    EXPANDED,
    LEARNERS,
    ReidReport,
    claim_reid,
    compare_methods,
    mean_report,
    row_names,
)
from reposer.evaluation.reid_protocols import MARKET, ReidProtocol, fold_sets
from reposer.evaluation.reidentification import Expansion, Rerank
from reposer.images import decode
from reposer.metrics.retrieval import NoMatch
from reposer.reid.features import read_rows, refuse_values
from reposer.reid.foreign_features import with_labels
from reposer.reid.search import pool_queries
from reposer.runtime import setup
from reposer.storage.lock import locked
from reposer.storage.outputs import remove_output, write_output
from reposer.storage.paths import made_folder
from reposer.storage.tables import parquet_bytes
from reposer.structures import FeatureSet
from reposer.trained.networks import EMBEDDING, open_network
from reposer.workflows.reid_features import (
    CROPS,
    GALLERY,
    QUERY,
    TEST,
    TRAIN,
    check_data,
    chosen_rows,
    crop_features,
    kept_features,
    training_note,
)

PER_QUERY = "reidentification.parquet"
ALWAYS, WHERE_TRAINED = ("euclidean",), ("xqda", "kissme")


@dataclass(frozen=True, slots=True)
class ReidOptions:
    """How a set of features is scored."""

    methods: tuple[str, ...] = ()  # none: euclidean, and where there are training features xqda and kissme
    rerank: Rerank | None = None  # every method once more, re-ranked
    multi_query: Literal["mean", "max"] | None = None  # how the crops of a query become one feature
    expand: Expansion | None = None  # every method once more, with query expansion
    protocol: ReidProtocol = MARKET
    unit: bool = True  # features are brought to length 1
    no_match: NoMatch = "skip"
    exclude_same_camera: bool = True
    roc: bool = False
    rank_lists: str = ""  # the row whose rank lists are drawn; empty: the first
    feature_map: str = ""  # tsne or umap; empty: none
    seed: int = 0


def evaluate_network(
    model: str,
    prepared: Path,
    out: Path,
    options: ReidOptions,
    *,
    query_list: Path | None = None,
    gallery_list: Path | None = None,
    crops: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> ReidReport:
    """Score a network on the people of a prepared folder; features are kept in ``out``.

    Args:
        model: run folder, exported folder or hub id.
        prepared: folder written by ``reposer prepare``.
        out: gets features.npz and .json, and what :func:`write_report_folder` writes.
        options: methods and pictures.
        query_list, gallery_list: text files of image names; default: see ``reid_features.tested_rows``.
        crops: folder with the crops of multi-query (gt_bbox), which ``options.multi_query`` needs.
        device, threads: as in ``runtime.setup``.

    Raises:
        UserError: nobody to test on, test people the network was trained on, unknown names and methods,
            and all that compare_methods refuses.
    """
    if (options.multi_query is None) != (crops is None):
        raise UserError(
            "multi-query needs the crops and a way to pool them", "give --multi-query and --crops"
        )
    _claim(out, options)
    runtime = setup(device=device, threads=threads, seed=options.seed)
    people = PackedPeople.open(prepared / PACKED)
    check_data(people, model)
    if options.protocol.by_camera and not people.camids.any():
        raise UserError("this protocol is about single cameras, and none is known", "choose another protocol")
    rows = chosen_rows(people, query_list, gallery_list)
    options = resolved(options, TRAIN in rows)
    if not set(options.methods) & LEARNERS.keys():
        rows.pop(TRAIN, None)
    embedding = open_network(EMBEDDING, model).network
    notes = [training_note(embedding.info, people, rows)]
    embedding.to(runtime.device)
    lists = [path.name for path in (query_list, gallery_list) if path is not None]
    facts = {"network": embedding.info.model_dump(mode="json"), "data": prepared.name, "lists": lists}

    def picture(name: str) -> NDArray[np.uint8]:
        return np.asarray(people.images[people.index(name)])

    made_folder(out)
    with locked(out):
        sets = kept_features(embedding, people, rows, out)
        if crops is not None:
            sets[CROPS] = crop_features(embedding, crops, sets[QUERY], people.size)
        return score_sets(sets, out, options, picture=picture, facts=facts, notes=notes)


def score_files(
    files: Sequence[Path], out: Path | None, options: ReidOptions, *, images: Sequence[Path] = ()
) -> ReidReport:
    """Score features of any tool.

    Args:
        files: feature files (``reid.features``; an .npy may be followed by its labels) that hold the
            splits query, gallery, and where wanted train and multi_query; one file or several.
        out: folder for the report; None writes nothing.
        options: methods and pictures.
        images: folders that the names are looked up in, in this order; without any no rank lists are drawn.

    Raises:
        UserError: a split missing or in two files, and all that compare_methods refuses.
    """
    if out is None and (images or options.feature_map or options.rank_lists):
        raise UserError("pictures need a place", "give --out FOLDER")
    sets = _tested_sets(files, options)
    facts = {"files": [path.name for path in files]}

    picture = partial(_picture_in, images) if images else None
    return score_sets(sets, out, resolved(options, TRAIN in sets), picture=picture, facts=facts)


def score_splits(
    files: Sequence[Path],
    out: Path | None,
    options: ReidOptions,
    *,
    folds: int | None = None,
    train_people: int | None = None,
) -> ReidReport:
    """Means and standard deviations over splits of one data set; learned methods are fitted for each.

    Args:
        files: without ``folds`` each is a split of its own, with query, gallery and, where wanted, train.
        out: folder for the report (no rank lists, no map); None writes nothing.
        options: methods and protocol.
        folds: random halves of all people of the files, whatever their splits (``fold_sets``).
        train_people: of each fold.

    Raises:
        UserError: one file without folds, an option without meaning here, and all that score_sets refuses.
    """
    if options.rank_lists or options.feature_map or options.multi_query:
        raise UserError("rank lists, maps and multi-query are of one split", "leave these options out")
    if folds is None:
        alone = [[file for file in pair if file is not None] for pair in with_labels(files)]
        if len(alone) < 2:
            raise UserError("one file is one split: there is no mean", "give the file of every split")
        splits, what = [_tested_sets(each, options) for each in alone], "files"
    else:
        everybody = list(_read_sets(files, options, (), TEST).values())
        splits, what = fold_sets(reduce(_joined, everybody), folds, options.seed, train_people), "folds"
    reports = [score_sets(sets, None, resolved(options, TRAIN in sets)) for sets in splits]
    report = mean_report(reports, what)
    report = replace(report, settings=report.settings | {"files": [path.name for path in files]})
    return report if out is None else write_report_folder(report, None, out, options, None)


def _tested_sets(files: Sequence[Path], options: ReidOptions) -> dict[str, FeatureSet]:
    """Query and gallery, and what else the files hold; one split ``test`` is both where cameras tell."""
    if not options.protocol.query_cameras:
        sets = _read_sets(files, options, (QUERY,))
    else:  # the cameras say who asks and who is found
        sets = _read_sets(files, options, (), TEST)
        if (test := sets.pop(TEST, None)) is not None:
            sets = {QUERY: test, GALLERY: test} | sets
    _require_splits(sets, files)
    return sets


def _read_sets(
    files: Sequence[Path], options: ReidOptions, asked: Sequence[str], *more: str
) -> dict[str, FeatureSet]:
    """The sets of the files by split, in the words of tables of people: ``test`` beside query is the gallery.

    Args:
        asked: splits whose every row is searched for.
        more: further splits that may be there.
    """
    sets: dict[str, FeatureSet] = {}
    names = (QUERY, GALLERY, TRAIN, CROPS, *more)
    read = [(path, *read_rows(path, labels)) for path, labels in with_labels(files)]
    words = split_words({split for _, _, splits in read for split in np.unique(splits).tolist()}, names)
    learned = not options.methods or not LEARNERS.keys().isdisjoint(options.methods)
    unused = [TRAIN] * (not learned) + [CROPS] * (not options.multi_query)
    while read:  # each is given up once it is parted
        path, whole, splits = read.pop(0)
        for split in dict.fromkeys(splits.tolist()):
            known(f"{path}: split", words[split], names)
        parts = np.array([words[split] for split in splits.tolist()])
        used = ~np.isin(parts, unused)
        refuse_values(path, whole, used, np.isin(parts, asked), unit=options.unit)
        for split in dict.fromkeys(parts.tolist()):
            if split in sets:
                raise UserError(f"{path}: a second set {split}", "give every split once")
            sets[split] = whole.rows(np.flatnonzero(parts == split))
    return sets


def _require_splits(sets: dict[str, FeatureSet], files: Sequence[Path]) -> None:
    missing = [name for name in (QUERY, GALLERY) if name not in sets]
    if missing:
        found = ", ".join(sets) or "none"
        raise UserError(
            f"{', '.join(map(str, files))}: no split {' and '.join(missing)} (found: {found})",
            "name the rows' splits query, gallery and train",
        )


def resolved(options: ReidOptions, has_training: bool) -> ReidOptions:
    """The options with methods and the row of the rank lists named.

    Raises:
        UserError: rank lists of a row that will not be there or has none, or a map that cannot be drawn.
    """
    methods = options.methods or ALWAYS + (WHERE_TRAINED if has_training else ())
    if options.expand is not None and not options.unit:
        raise UserError("query expansion adds features of length 1", "leave --raw or --expand out")
    if options.multi_query and not options.unit:
        raise UserError("multi-query pools features of length 1", "leave --raw or --multi-query out")
    usual = replace(options.protocol, words="") == replace(MARKET, words="")
    if options.rank_lists and not (usual and options.exclude_same_camera):
        raise UserError("rank lists are drawn by Market-1501's rules only", "leave --rank-lists out")
    rows = row_names(methods, options.rerank is not None, options.expand is not None)
    if options.rank_lists.endswith(EXPANDED):
        raise UserError(f"rank lists of {options.rank_lists!r} cannot be drawn", f"choose {rows[0]!r}")
    if options.rank_lists:
        known("row for rank lists", options.rank_lists, rows)
    if options.feature_map:
        check_map(options.feature_map)
    return replace(options, methods=methods, rank_lists=options.rank_lists or rows[0])


def score_sets(
    sets: dict[str, FeatureSet],
    out: Path | None,
    options: ReidOptions,
    *,
    picture: PictureOf | None = None,
    facts: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> ReidReport:
    """Compare the methods on feature sets and write everything.

    Args:
        sets: query, gallery; train for learned methods; multi_query with ``options.multi_query``.
        out: None writes nothing.
        options: :func:`resolved`.
        picture: of a name; None draws no rank lists.
        facts: for the settings of the report.
        notes: come before the report's own.
    """
    if out is not None:
        _claim(out, options)
    query, remarks = sets[QUERY], list(notes)
    if options.multi_query:
        if CROPS not in sets:
            raise UserError(
                f"multi-query needs a split {CROPS}", "add it to the features, or leave the option out"
            )
        query, alone = pool_queries(query, sets[CROPS], options.multi_query, sets[GALLERY])
        remarks.append(
            f"Multi-query: each query is the {options.multi_query} over the crops of its person and camera"
            f" ({len(sets[CROPS]):,} crops in all); {alone:,} queries have no crop and stand for themselves."
        )
    report = compare_methods(
        query,
        sets[GALLERY],
        sets.get(TRAIN),
        methods=options.methods,
        rerank=options.rerank,
        expand=options.expand,
        protocol=options.protocol,
        unit=options.unit,
        no_match=options.no_match,
        exclude_same_camera=options.exclude_same_camera,
        roc=options.roc,
        seed=options.seed,
    )
    settings = report.settings | {"multi_query": options.multi_query} | (facts or {})
    report = replace(report, settings=settings, notes=(*remarks, *report.notes))
    return (
        report if out is None else write_report_folder(report, (query, sets[GALLERY]), out, options, picture)
    )


def write_report_folder(
    report: ReidReport,
    tested: tuple[FeatureSet, FeatureSet] | None,
    out: Path,
    options: ReidOptions,
    picture: PictureOf | None,
) -> ReidReport:
    """Write the pictures, reidentification.parquet (per query), .md and, last, .json.

    Args:
        tested: queries and gallery, for rank lists and maps; None: several splits, which have neither.

    Rank lists are drawn by Market-1501's rules only; a note says where there are none. Pictures of an earlier
    report that this one does not have are removed, where they are as they were written.

    Returns:
        the report with the pictures' names and captions.
    """
    made_folder(out)
    _claim(out, options)
    write_output(out / "cmc.png", draw_cmc(report))
    pictures = {"cmc.png": "Share of queries whose first match stands at a rank or before it."}
    if tested is not None and picture is not None:
        why = _no_rank_lists(report, options)
        for path in (
            []
            if why
            else write_rank_lists(out, *tested, report, picture, method=options.rank_lists, unit=options.unit)
        ):
            kind = path.stem.removeprefix("ranklist_")
            pictures[path.name] = f"Rank lists, {options.rank_lists}: {_KINDS[kind]}."
        if why:
            report = replace(report, notes=(*report.notes, f"No rank lists are drawn: {why}."))
    if options.feature_map and tested is not None:
        name = f"map_{options.feature_map}.png"
        write_output(out / name, draw_map(_joined(*tested), options.feature_map, options.seed))
        pictures[name] = (
            f"{options.feature_map} map of the features of queries and gallery: neighborhoods mean something,"
            " sizes and distances of clusters do not."
        )
    for name in _PICTURES:
        if name not in pictures:
            remove_output(out / name)  # of an earlier report, as it was written
    write_output(out / PER_QUERY, parquet_bytes(_per_query(report)))
    report = replace(report, pictures=pictures)
    report.write(out)
    return report


def _claim(out: Path, options: ReidOptions) -> None:
    """Refuse, before any work, to replace what no Re-ID evaluation wrote."""
    pictures = ["cmc.png", *(f"ranklist_{kind}.png" for kind in _KINDS)]
    pictures += [f"map_{options.feature_map}.png"] if options.feature_map else []
    claim_reid(out, PER_QUERY, *pictures)


def _no_rank_lists(report: ReidReport, options: ReidOptions) -> str:
    """Why a report gets no rank lists; empty where it gets some."""
    if replace(options.protocol, words="") != replace(MARKET, words="") or not options.exclude_same_camera:
        return "they follow Market-1501's rules, these scores do not"
    return "" if options.rank_lists in report.results else f"there is no row {options.rank_lists}"


_KINDS = {
    "best": "queries with the highest average precision",
    "worst": "queries with the lowest average precision",
    "failed": "queries whose nearest image shows somebody else, the deepest first match first",
}
_PICTURES = ("cmc.png", *(f"ranklist_{kind}.png" for kind in _KINDS), *(f"map_{how}.png" for how in MAPS))


def _picture_in(folders: Sequence[Path], name: str) -> NDArray[np.uint8]:
    root = next((folder for folder in folders if (folder / name).exists()), None)
    if root is None:
        searched = ", ".join(map(str, folders))
        raise UserError(
            f"{name}: no such image in {searched}", "give the folders of query and gallery with --images"
        )
    return decode(root / name, root)


def _joined(first: FeatureSet, second: FeatureSet) -> FeatureSet:
    features, pids, camids = (
        np.concatenate([getattr(s, key) for s in (first, second)]) for key in ("features", "pids", "camids")
    )
    clothes = None
    if first.clothes is not None and second.clothes is not None:
        clothes = np.concatenate([first.clothes, second.clothes])
    return FeatureSet(features, pids, camids, first.names + second.names, clothes)


def _per_query(report: ReidReport) -> pa.Table:
    """A row for each method, trial and query; null where a query has no valid match."""
    parts = []
    for method, result in report.results.items():
        scores, without, asked = result.scores, result.scores.hits == 0, result.asked
        columns = {
            "method": pa.array([method] * len(asked.names)),
            "query": pa.array(asked.names),
            "pid": pa.array(asked.pids),
            "camid": pa.array(asked.camids),
            "matches": pa.array(scores.hits),
            "tied_matches": pa.array(scores.tied_hits),
            "first_hit": pa.array(scores.worst.first_hit, mask=without),
            "ap_step": pa.array(scores.worst.ap_step, mask=without),
            "ap_trapezoid": pa.array(scores.worst.ap_trapezoid, mask=without),
            "inp": pa.array(scores.worst.inp, mask=without),
        }
        if asked.trials > 1:
            columns["trial"] = pa.array(asked.trial)  # or split, from 0
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
