"""Re-ID evaluation as a whole: against float64, invariances, refusals, the report, the sheets."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from matplotlib.text import Text
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from reposer.errors import UserError
from reposer.evaluation.plots import (
    COLORS,
    HEADER,
    choose_queries,
    draw_cmc,
    draw_curves,
    rank_list,
    write_rank_lists,
)
from reposer.evaluation.reid_comparison import LEARNERS, compare_methods, row_names
from reposer.evaluation.reid_protocols import find_protocol
from reposer.evaluation.reidentification import Rerank, evaluate_reid
from reposer.images import decode, decode_bytes
from reposer.metrics.intervals import mean_interval
from reposer.reid.metric_learners import XQDA
from reposer.reid.search import search
from reposer.structures import FeatureSet

CENTERS = np.random.default_rng(99).normal(size=(120, 24)) * np.where(np.arange(24) < 8, 1.0, 0.1)


def _people(seed, count, low, high, cameras=5):
    """Features of people ``low`` to ``high``: 8 telling dimensions, 16 of nuisance."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(low, high, count)
    features = CENTERS[pids] + 0.9 * rng.normal(size=(count, 24))
    names = tuple(f"{seed}_{i:04d}.jpg" for i in range(count))
    return FeatureSet(features.astype(np.float32), pids, rng.integers(1, cameras, count), names)


QUERY, GALLERY, TRAIN = _people(0, 60, 1, 40), _people(1, 400, -1, 40), _people(2, 700, 40, 120)


def _rows(features, rows):
    names = tuple(features.names[i] for i in rows)
    return FeatureSet(features.features[rows], features.pids[rows], features.camids[rows], names)


def test_evaluation_equals_scikit_learn_on_float64_distances():
    result = evaluate_reid(QUERY, GALLERY)
    unit = [s.features.astype(np.float64) for s in (QUERY, GALLERY)]
    distance = cdist(*(x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit))
    precision, first = [], []
    for q in range(60):
        same = GALLERY.pids == QUERY.pids[q]
        valid = (GALLERY.pids != -1) & ~(same & (GALLERY.camids == QUERY.camids[q]))
        if not (same & valid).any():
            continue
        precision.append(average_precision_score(same[valid], -distance[q, valid]))
        first.append(same[valid][np.argmin(distance[q, valid])])
    assert result.values.mAP_step == pytest.approx(np.mean(precision), abs=1e-9)
    assert result.values.rank1 == pytest.approx(np.mean(first))
    assert result.counts["queries_with_valid_match"] == len(first)
    assert result.counts["gallery_junk"] == (GALLERY.pids == -1).sum() > 0
    assert result.counts["gallery_distractors"] == (GALLERY.pids == 0).sum() > 0


def test_intervals_are_those_of_a_bootstrap_over_people():
    result = evaluate_reid(QUERY, GALLERY, seed=3)
    chosen = result.scores.hits > 0
    for name in ("rank1", "mAP_step"):
        values = result.scores.worst.ap_step if name == "mAP_step" else result.scores.worst.first_hit == 1
        low, high = mean_interval(values[chosen].astype(np.float64), QUERY.pids[chosen], seed=8)
        assert result.intervals[name] == pytest.approx((low, high), abs=0.02)
        assert low < getattr(result.values, name) < high
    assert result.intervals == evaluate_reid(QUERY, GALLERY, seed=3).intervals


def test_junk_and_gallery_order_change_no_digit():
    kept = np.flatnonzero(GALLERY.pids != -1)
    for options in ({}, {"distance": "cosine"}, {"rerank": Rerank(10, 3)}):
        with_junk, without = (evaluate_reid(QUERY, g, **options) for g in (GALLERY, _rows(GALLERY, kept)))
        assert with_junk.values == without.values
    shuffled = _rows(GALLERY, np.random.default_rng(0).permutation(400))
    straight, other = evaluate_reid(QUERY, GALLERY), evaluate_reid(QUERY, shuffled)
    assert asdict(other.values) == pytest.approx(asdict(straight.values), abs=1e-12)


def test_methods_agree_where_they_must():
    euclid, cosine = evaluate_reid(QUERY, GALLERY), evaluate_reid(QUERY, GALLERY, distance="cosine")
    np.testing.assert_allclose(cosine.scores.worst.ap_step, euclid.scores.worst.ap_step, atol=1e-9)
    same = evaluate_reid(QUERY, GALLERY, rerank=Rerank(weight=1.0))
    np.testing.assert_allclose(same.scores.worst.ap_step, euclid.scores.worst.ap_step, atol=1e-9)
    raw = evaluate_reid(QUERY, GALLERY, unit=False)
    assert raw.values.mAP_step != euclid.values.mAP_step


def test_learning_from_other_people_helps_and_the_report_says_all(tmp_path):
    report = compare_methods(QUERY, GALLERY, TRAIN, methods=("euclidean", *LEARNERS), rerank=Rerank())
    results = report.results
    assert results["xqda"].values.mAP_step > results["euclidean"].values.mAP_step + 0.02
    assert results["euclidean + re-ranking"].values.mAP_step != results["euclidean"].values.mAP_step
    expected = evaluate_reid(QUERY, GALLERY, distance=XQDA().fit(_unit(TRAIN), TRAIN.pids, TRAIN.camids))
    assert results["xqda"].values.mAP_step == pytest.approx(expected.values.mAP_step)
    report.write(tmp_path)
    saved = json.loads((tmp_path / "reidentification.json").read_text())
    assert saved["methods"]["xqda"]["rank1"] == results["xqda"].values.rank1
    assert len(saved["methods"]["xqda"]["cmc"]) == 50
    assert saved["learned"]["xqda"]["condition_number"] > 1
    assert (
        saved["learned"]["kissme_reference"]["similar_pairs"]
        < saved["learned"]["kissme"]["similar_pairs"] / 9
    )
    text = (tmp_path / "reidentification.md").read_text()
    for phrase in (
        "transductive",
        "60 queries",
        "condition number",
        "mAP_trapezoid",
        "coincide",
        "distractors",
    ):
        assert phrase in text


def _unit(features):
    return features.features / np.linalg.norm(features.features, axis=1, keepdims=True)


def test_ties_are_reported_with_their_bracket():
    coarse = [replace(s, features=np.round(s.features[:, :2]) + 0.5) for s in (QUERY, GALLERY)]
    report = compare_methods(*coarse, methods=("euclidean",))
    result = report.results["euclidean"]
    assert result.counts["tied_matches"] > 0
    assert result.best.rank1 > result.values.rank1
    assert any("tie with a negative" in note for note in report.notes)


def test_queries_without_a_match_are_counted_and_the_denominator_is_a_choice():
    query = replace(QUERY, pids=np.where(np.arange(60) < 6, 500 + np.arange(60), QUERY.pids))
    skip, zero = evaluate_reid(query, GALLERY), evaluate_reid(query, GALLERY, no_match="zero")
    matched = skip.counts["queries_with_valid_match"]
    assert (skip.counts["queries"], skip.counts["queries_in_mean"]) == (60, matched)
    assert zero.counts["queries_in_mean"] == 60
    assert matched <= 54
    assert zero.values.rank1 == pytest.approx(skip.values.rank1 * matched / 60)


def test_one_query_one_match():
    result = evaluate_reid(_rows(QUERY, [0]), replace(_rows(QUERY, [0, 1]), camids=np.array([9, 9])))
    assert result.values.rank1 == result.values.mINP == 1.0
    assert set(result.intervals.values()) == {None}
    assert json.dumps(result.to_json(), allow_nan=False)


def _damaged(features, value):
    damaged = features.features.copy()
    damaged[5] = value
    return replace(features, features=damaged)


REFUSED = {
    "NaN query": lambda: (_damaged(QUERY, np.nan), GALLERY, "query: row 5 holds NaN"),
    "infinite gallery": lambda: (QUERY, _damaged(GALLERY, np.inf), "gallery: row 5 holds NaN or infinity"),
    "zero gallery": lambda: (QUERY, _damaged(GALLERY, 0.0), "gallery: row 5 is all zeros"),
    "empty query": lambda: (_rows(QUERY, []), GALLERY, r"query: features of shape \(0, 24\)"),
    "empty gallery": lambda: (QUERY, _rows(GALLERY, []), r"gallery: features of shape \(0, 24\)"),
    "only junk": lambda: (
        QUERY,
        replace(GALLERY, pids=np.full(400, -1)),
        "gallery holds no image that counts",
    ),
    "other people": lambda: (QUERY, TRAIN, "none of the 60 queries"),
    "junk query": lambda: (replace(QUERY, pids=np.full(60, -1)), GALLERY, "holds no image that counts"),
    "distractor query": lambda: (replace(QUERY, pids=np.arange(60)), GALLERY, "query row 0: person 0"),
    "sizes": lambda: (replace(QUERY, features=QUERY.features[:, :8]), GALLERY, "8 numbers each"),
    "labels": lambda: (replace(QUERY, pids=QUERY.pids[:9]), GALLERY, "9 pids"),
    "names": lambda: (QUERY, replace(GALLERY, names=("a",)), "and 1 names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name_never_scored(name):
    query, gallery, problem = REFUSED[name]()
    with pytest.raises(UserError, match=problem):
        evaluate_reid(query, gallery)


def _literal(query, gallery, out):
    """Rank-1 and mAP_step by loops; ``out(i, j)``: gallery image j does not count for query i."""
    unit = [s.features / np.linalg.norm(s.features.astype(float), axis=1)[:, None] for s in (query, gallery)]
    first, precision = [], []
    for i, feature in enumerate(unit[0]):
        columns = [j for j in range(len(gallery)) if gallery.pids[j] != -1 and not out(i, j)]
        order = sorted(columns, key=lambda j: ((feature - unit[1][j]) ** 2).sum())
        hits = [rank for rank, j in enumerate(order, 1) if gallery.pids[j] == query.pids[i]]
        if hits:
            first.append(hits[0] == 1)
            precision.append(np.mean([k / rank for k, rank in enumerate(hits, 1)]))
    return np.mean(first), np.mean(precision)


@pytest.mark.parametrize("number", [0, 1, 7, -1])
def test_where_one_camera_is_all_there_is_every_image_is_its_own(number):
    query, gallery = (replace(s, camids=np.full(len(s), number)) for s in (_rows(QUERY, range(20)), GALLERY))
    expected = _literal(query, gallery, lambda i, j: False)
    for protocol in (find_protocol("market1501"), find_protocol("ltcc_standard")):
        result = evaluate_reid(query, gallery, protocol=protocol)
        assert (result.values.rank1, result.values.mAP_step) == pytest.approx(expected)
    report = compare_methods(query, gallery, methods=("euclidean", "cosine"))
    assert report.results["cosine"].values.mAP_step == pytest.approx(expected[1])
    assert report.notes[0].startswith("No camera is known: every image counts as a camera of its own.")
    assert (f"camera number {number}" in report.notes[0]) == (number > 0)
    assert search(query, gallery, top=400).valid.sum() == 20 * (gallery.pids != -1).sum()


def test_an_unknown_camera_among_known_ones_is_one_of_its_own():
    query, gallery = (
        replace(s, camids=np.where(np.arange(len(s)) % step, s.camids, -1))
        for s, step in ((_rows(QUERY, range(20)), 3), (GALLERY, 4))
    )
    expected = _literal(
        query,
        gallery,
        lambda i, j: gallery.pids[j] == query.pids[i] and gallery.camids[j] == query.camids[i] != -1,
    )
    report = compare_methods(query, gallery, methods=("euclidean",))
    values = report.results["euclidean"].values
    assert (values.rank1, values.mAP_step) == pytest.approx(expected)
    assert report.notes[0].startswith("The camera of 107 images is not known")


def test_a_gallery_of_one_camera_keeps_the_rule_and_says_who_finds_nobody():
    gallery = replace(GALLERY, camids=np.full(400, int(QUERY.camids[0])))
    report = compare_methods(QUERY, gallery, methods=("euclidean",))
    own = QUERY.camids == QUERY.camids[0]
    expected = _literal(QUERY, gallery, lambda i, j: own[i] and gallery.pids[j] == QUERY.pids[i])
    values = report.results["euclidean"].values
    assert (values.rank1, values.mAP_step) == pytest.approx(expected)
    assert report.notes[0] == (
        f"All gallery images are of camera {QUERY.camids[0]}: the {own.sum()} queries of it have no valid"
        " match."
    )


def test_nobody_is_found_by_his_own_query_image_where_no_camera_is_known():
    """Benchmarks that keep the queries in the gallery: features of the copy come from another batch."""
    query = replace(
        _rows(QUERY, range(20)), camids=np.zeros(20, int), names=tuple(f"q{i}" for i in range(20))
    )
    gallery = replace(GALLERY, camids=np.zeros(400, int))
    both = FeatureSet(
        np.concatenate([query.features * np.float32(1 + 1e-6), gallery.features]),
        np.concatenate([query.pids, gallery.pids]),
        np.zeros(420, int),
        query.names + gallery.names,
    )
    expected = _literal(query, both, lambda i, j: i == j)
    result = evaluate_reid(query, both)
    assert (result.values.rank1, result.values.mAP_step) == pytest.approx(expected)
    other = replace(both, features=np.roll(both.features, 1, axis=0), pids=np.roll(both.pids, 1))
    assert evaluate_reid(query, other).values.rank1 > 0.99  # equal names alone ("row 0") say nothing


def test_learned_distances_take_all_pairs_of_training_images_of_one_camera():
    train = replace(TRAIN, camids=np.full(len(TRAIN), 3))
    report = compare_methods(QUERY, GALLERY, train, methods=("xqda",))
    counts = np.unique(train.pids, return_counts=True)[1]
    assert report.learned["xqda"]["similar_pairs"] == (counts * (counts - 1) // 2).sum()
    assert report.notes[0].startswith("Training images: No camera is known")


def test_sampling_protocols_without_cameras():
    query, gallery = (replace(s, camids=np.zeros(len(s), int)) for s in (QUERY, GALLERY))
    shot = evaluate_reid(query, gallery, protocol=find_protocol("single_shot", trials=3))
    people = len(np.unique(gallery.pids[gallery.pids > 0])) + (gallery.pids == 0).sum()
    assert (shot.scores.valid == people).all()
    with pytest.raises(UserError, match="no query is of camera 3 or 6"):
        evaluate_reid(query, gallery, protocol=find_protocol("sysu_all"))


def test_duplicates_in_the_gallery_and_a_gallery_smaller_than_k():
    twice = _rows(GALLERY, np.repeat(np.arange(400), 2))
    assert np.isfinite(evaluate_reid(QUERY, twice).values.mAP_step)
    pid = QUERY.pids[0]
    few = np.flatnonzero((GALLERY.pids == pid) & (GALLERY.camids != QUERY.camids[0]))[:2]
    result = evaluate_reid(_rows(QUERY, [0]), _rows(GALLERY, few))
    assert result.cmc.tolist() == [1.0] * 50


def test_comparison_refuses_leaks_and_typos():
    with pytest.raises(UserError, match="39 people are in the training set and in the test set"):
        compare_methods(QUERY, GALLERY, replace(TRAIN, pids=1 + TRAIN.pids % 39), methods=("xqda",))
    with pytest.raises(UserError, match="need features of training people"):
        compare_methods(QUERY, GALLERY, methods=("kissme",))
    with pytest.raises(
        UserError,
        match=r"method euclid: unknown: did you mean euclidean\? known: euclidean, c",
    ):
        compare_methods(QUERY, GALLERY, methods=("euclid",))
    with pytest.raises(UserError, match="distance manhattan: unknown"):
        evaluate_reid(QUERY, GALLERY, distance="manhattan")


def _picture(name):
    return np.full((32, 16, 3), 40 + int(name[-6:-4]), np.uint8)


def test_sheets_show_best_worst_and_failed_queries_with_colored_frames(tmp_path):
    report = compare_methods(QUERY, GALLERY, methods=("euclidean",))
    scores = report.results["euclidean"].scores
    best, worst, failed = (
        choose_queries(scores, QUERY.pids, kind, 4) for kind in ("best", "worst", "failed")
    )
    matched = np.flatnonzero(scores.hits > 0)
    people = {pid: matched[QUERY.pids[matched] == pid] for pid in QUERY.pids[matched]}
    precision = scores.worst.ap_step
    lowest = sorted(precision[rows].min() for rows in people.values())[:4]
    highest = sorted((precision[rows].max() for rows in people.values()), reverse=True)[:4]
    np.testing.assert_array_equal(precision[worst], lowest)
    np.testing.assert_array_equal(precision[best], highest)
    for rows in (best, worst, failed):
        assert len(set(QUERY.pids[rows])) == 4
    assert (scores.worst.first_hit[failed] > 1).all()
    assert scores.worst.first_hit[failed[0]] == scores.worst.first_hit.max()

    paths = write_rank_lists(tmp_path, QUERY, GALLERY, report, _picture, count=4)
    assert [path.name for path in paths] == ["ranklist_best.png", "ranklist_worst.png", "ranklist_failed.png"]
    sheet = decode(paths[2])
    ranking = search(QUERY, GALLERY, queries=failed, top=10)
    for line in range(4):
        for column in range(10):
            flag = "match" if ranking.matches[line, column] else "miss"
            flag = flag if ranking.valid[line, column] else "junk"
            y, x = HEADER + line * (sheet.shape[0] - HEADER) // 4, 12 + (column + 1) * 80
            assert tuple(sheet[y + 40 - 8 * line // 4, x + 1]) == COLORS[flag]


def test_a_perfect_method_has_no_failed_sheet(tmp_path):
    gallery = replace(_rows(QUERY, range(60)), camids=QUERY.camids + 10)
    report = compare_methods(QUERY, gallery, methods=("euclidean",))
    assert len(write_rank_lists(tmp_path, QUERY, gallery, report, _picture)) == 2
    with pytest.raises(UserError, match="method of the report xqda: unknown"):
        write_rank_lists(tmp_path, QUERY, gallery, report, _picture, method="xqda")


def test_re_ranked_results_keep_the_lists_that_their_scores_come_from():
    """The kept order, read as a rank list, gives rank-1 and (short gallery) average precision again."""
    near = _rows(GALLERY, np.arange(45))  # fewer than are kept: the lists are whole
    result = evaluate_reid(QUERY, near, rerank=Rerank(10, 3))
    listed = result.ranking
    assert listed.order.shape == (60, (near.pids != -1).sum())
    assert (near.pids[listed.order] != -1).all()
    assert (np.diff(listed.distance, axis=1) >= 0).all()
    for q in np.flatnonzero(result.scores.hits > 0):
        valid = listed.valid[q]
        expected = average_precision_score(listed.matches[q][valid], -listed.distance[q][valid])
        assert result.scores.worst.ap_step[q] == pytest.approx(expected, abs=1e-6)


def test_sheets_of_learned_and_re_ranked_rows_show_their_own_lists(tmp_path):
    report = compare_methods(QUERY, GALLERY, TRAIN, methods=("euclidean", "xqda"), rerank=Rerank(10, 3))
    assert list(report.results) == row_names(("euclidean", "xqda"), True)
    rows, lists = np.arange(60), {}
    for method, result in report.results.items():
        lists[method] = rank_list(QUERY, GALLERY, report, method, rows, 10)
        nearest = [
            m[v][0] for m, v in zip(lists[method].matches, lists[method].valid, strict=True) if v.any()
        ]
        matched = result.scores.hits > 0
        assert np.mean(np.array(nearest)[matched]) == pytest.approx(result.values.rank1)
        assert write_rank_lists(tmp_path / method, QUERY, GALLERY, report, _picture, method=method)
    assert len({lists[method].order.tobytes() for method in lists}) == 4


def test_a_sheet_of_an_earlier_report_does_not_stay(tmp_path):
    report = compare_methods(QUERY, GALLERY, methods=("euclidean",))
    write_rank_lists(tmp_path, QUERY, GALLERY, report, _picture)
    gallery = replace(_rows(QUERY, range(60)), camids=QUERY.camids + 10)
    perfect = compare_methods(QUERY, gallery, methods=("euclidean",))
    write_rank_lists(tmp_path, QUERY, gallery, perfect, _picture)
    assert not (tmp_path / "ranklist_failed.png").exists()


def test_the_cmc_plot_draws_every_row_and_the_same_bytes_twice():
    report = compare_methods(QUERY, GALLERY, TRAIN, rerank=Rerank(10, 3))
    picture = draw_cmc(report)
    assert picture == draw_cmc(report)
    pixels = decode_bytes(picture, "cmc.png").reshape(-1, 3)
    for color in ("#0b6e4f", "#c8553d", "#2f5d9b"):  # three methods; re-ranked twins share their color
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(1) < 8).sum() > 100


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *(
            ("xqda", "xqda"),
            ("$a$", "$a$"),
            ("$\\frac$", "$\\frac$"),
            ("_own", " _own"),
            ("lo\u00df", "lo\u00df"),
        ),
        *(
            ("\u6f22", "\\u6f22"),
            ("\U0001f468", "\\U0001f468"),
            ("a\x1bb\n", "a\\x1bb\\n"),
            ("\ud800", "\\ud800"),
        ),
    ],
)
def test_a_curve_of_any_name_is_in_the_legend(name, shown, recwarn, monkeypatch):
    labels = []
    draw = Text._get_layout

    def noted(self, renderer):
        labels.append(self._preprocess_math(self.get_text()))
        return draw(self, renderer)

    monkeypatch.setattr(Text, "_get_layout", noted)
    assert draw_curves({name: np.linspace(0.5, 1, 20), "other": np.linspace(0.25, 1, 20)}, "arm")
    assert {(f"{shown}: 50.0", False), ("other: 25.0", False)} <= set(labels)
    assert [str(told.message) for told in recwarn.list] == []
