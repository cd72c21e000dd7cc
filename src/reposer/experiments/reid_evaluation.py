"""Re-ID scores of a network or of feature files, with everything there is to look at: ``reposer reid``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError
from reposer.evaluation.cmc_plot import draw_cmc
from reposer.evaluation.feature_map import check_map, draw_map
from reposer.evaluation.ranklists import PictureOf, write_rank_lists
from reposer.evaluation.reid_comparison import LEARNERS, ReidReport, compare_methods, row_names
from reposer.evaluation.reidentification import Rerank
from reposer.experiments.reid_features import crop_features, kept_features, open_embedding
from reposer.experiments.reid_rows import CROPS, GALLERY, QUERY, TRAIN, chosen_rows, training_note
from reposer.files import write_atomic
from reposer.images import decode
from reposer.reid.feature_files import read_features
from reposer.reid.search import pool_queries
from reposer.runtime import setup
from reposer.structures import FeatureSet

PER_QUERY = "reidentification.parquet"
ALWAYS, WHERE_TRAINED = ("euclidean",), ("xqda", "kissme")


@dataclass(frozen=True, slots=True)
class ReidOptions:
    """How a set of features is scored."""

    methods: tuple[str, ...] = ()  # none: euclidean, and where there are training features xqda and kissme
    rerank: Rerank | None = None  # every method once more, re-ranked
    multi_query: Literal["mean", "max"] | None = None  # how the crops of a query become one feature
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
        query_list, gallery_list: text files of image names; default: see ``reid_rows.tested_rows``.
        crops: folder with the crops of multi-query (gt_bbox), which ``options.multi_query`` needs.
        device, threads: as in ``runtime.setup``.

    Raises:
        UserError: nobody to test on, test people whom the network was trained on, unknown names and methods,
            and all that compare_methods refuses.
    """
    if (options.multi_query is None) != (crops is None):
        raise UserError(
            "multi-query needs the crops and a way to pool them", "give --multi-query and --crops"
        )
    runtime = setup(device=device, threads=threads, seed=options.seed)
    people = PackedPeople.open(prepared / PACKED)
    rows = chosen_rows(people, query_list, gallery_list)
    options = resolved(options, TRAIN in rows)
    if not set(options.methods) & LEARNERS.keys():
        rows.pop(TRAIN, None)
    embedding = open_embedding(model)
    notes = [training_note(embedding.info, people, rows)]
    if not people.camids.any():
        notes.append("No camera is known: every image counts as a camera of its own.")
    embedding.to(runtime.device)
    sets = kept_features(embedding, people, rows, out)
    if crops is not None:
        sets[CROPS] = crop_features(embedding, crops, sets[QUERY], people.size)
    lists = [path.name for path in (query_list, gallery_list) if path is not None]
    facts = {"network": embedding.info.model_dump(mode="json"), "data": prepared.name, "lists": lists}

    def picture(name: str) -> NDArray[np.uint8]:
        return np.asarray(people.images[people.index(name)])

    return score_sets(sets, out, options, picture=picture, facts=facts, notes=notes)


def score_files(
    files: Sequence[Path], out: Path | None, options: ReidOptions, *, images: Sequence[Path] = ()
) -> ReidReport:
    """Score features of any tool.

    Args:
        files: .npz or Parquet files (``reid.feature_files``) that hold the splits query, gallery, and where
            wanted train and multi_query; one file or several.
        out: folder for the report; None writes nothing.
        options: methods and pictures.
        images: folders that the names are looked up in, in this order; without any no rank lists are drawn.

    Raises:
        UserError: a split missing or in two files, and all that compare_methods refuses.
    """
    sets: dict[str, FeatureSet] = {}
    for path in files:
        for split, features in read_features(path).items():
            if split in sets:
                raise UserError(f"{path}: a second set {split}", "give every split once")
            sets[split] = features
    missing = [name for name in (QUERY, GALLERY) if name not in sets]
    if missing:
        found = ", ".join(sets) or "none"
        raise UserError(
            f"{', '.join(map(str, files))}: no split {' and '.join(missing)} (found: {found})",
            "name the rows' splits query, gallery and train",
        )
    if out is None and (images or options.feature_map or options.rank_lists):
        raise UserError("pictures need a place", "give --out FOLDER")
    facts = {"files": [path.name for path in files]}

    picture = partial(_picture_in, images) if images else None
    return score_sets(sets, out, resolved(options, TRAIN in sets), picture=picture, facts=facts)


def resolved(options: ReidOptions, has_training: bool) -> ReidOptions:
    """The options with methods and the row of the rank lists named.

    Raises:
        UserError: rank lists of a row that will not be there, or a map that cannot be drawn.
    """
    methods = options.methods or ALWAYS + (WHERE_TRAINED if has_training else ())
    rows = row_names(methods, options.rerank is not None)
    if options.rank_lists and options.rank_lists not in rows:
        raise UserError(f"no row {options.rank_lists!r} for rank lists", f"choose one of {', '.join(rows)}")
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
    query, told = sets[QUERY], list(notes)
    if options.multi_query:
        if CROPS not in sets:
            raise UserError(
                f"multi-query needs a split {CROPS}", "add it to the features, or leave the option out"
            )
        query, alone = pool_queries(query, sets[CROPS], options.multi_query)
        told.append(
            f"Multi-query: each query is the {options.multi_query} over the crops of its person and camera"
            f" ({len(sets[CROPS]):,} crops in all); {alone:,} queries have no crop and stand for themselves."
        )
    report = compare_methods(
        query,
        sets[GALLERY],
        sets.get(TRAIN),
        methods=options.methods,
        rerank=options.rerank,
        seed=options.seed,
    )
    settings = report.settings | {"multi_query": options.multi_query} | (facts or {})
    report = replace(report, settings=settings, notes=(*told, *report.notes))
    return report if out is None else write_report_folder(report, query, sets[GALLERY], out, options, picture)


def write_report_folder(
    report: ReidReport,
    query: FeatureSet,
    gallery: FeatureSet,
    out: Path,
    options: ReidOptions,
    picture: PictureOf | None,
) -> ReidReport:
    """Write the pictures, reidentification.parquet (per query), .md and, last, .json.

    Returns:
        the report with the pictures' names and captions.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "cmc.png", draw_cmc(report))
    pictures = {"cmc.png": "Share of queries whose first match stands at a rank or before it."}
    if picture is not None and options.rank_lists in report.results:
        for path in write_rank_lists(out, query, gallery, report, picture, method=options.rank_lists):
            kind = path.stem.removeprefix("ranklist_")
            pictures[path.name] = f"Rank lists, {options.rank_lists}: {_KINDS[kind]}."
    if options.feature_map:
        name = f"map_{options.feature_map}.png"
        write_atomic(out / name, draw_map(_joined(query, gallery), options.feature_map, options.seed))
        pictures[name] = (
            f"{options.feature_map} map of the features of queries and gallery: neighborhoods mean something,"
            " sizes and distances of clusters do not."
        )
    content = pa.BufferOutputStream()
    pq.write_table(_per_query(report, query), content)
    write_atomic(out / PER_QUERY, content.getvalue().to_pybytes())
    report = replace(report, pictures=pictures)
    report.write(out)
    return report


_KINDS = {
    "best": "queries with the highest average precision",
    "worst": "queries with the lowest average precision",
    "failed": "queries whose nearest image shows somebody else, the deepest first match first",
}


def _picture_in(folders: Sequence[Path], name: str) -> NDArray[np.uint8]:
    root = next((folder for folder in folders if (folder / name).exists()), None)
    if root is None:
        searched = ", ".join(map(str, folders))
        raise UserError(
            f"{name}: no such image in {searched}", "give the folders of query and gallery with --images"
        )
    return decode(root / name, root)


def _joined(query: FeatureSet, gallery: FeatureSet) -> FeatureSet:
    features, pids, camids = (
        np.concatenate([getattr(s, key) for s in (query, gallery)]) for key in ("features", "pids", "camids")
    )
    return FeatureSet(features, pids, camids, query.names + gallery.names)


def _per_query(report: ReidReport, query: FeatureSet) -> pa.Table:
    """A row for each method and query; null where a query has no valid match."""
    parts = []
    for method, result in report.results.items():
        scores, without = result.scores, result.scores.hits == 0
        columns = {
            "method": pa.array([method] * len(query)),
            "query": pa.array(query.names),
            "pid": pa.array(query.pids),
            "camid": pa.array(query.camids),
            "matches": pa.array(scores.hits),
            "tied_matches": pa.array(scores.tied_hits),
            "first_hit": pa.array(scores.worst.first_hit, mask=without),
            "ap_step": pa.array(scores.worst.ap_step, mask=without),
            "ap_trapezoid": pa.array(scores.worst.ap_trapezoid, mask=without),
            "inp": pa.array(scores.worst.inp, mask=without),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
