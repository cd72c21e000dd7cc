"""Protocols against loops over queries and images, written out from their descriptions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reposer.errors import UserError
from reposer.evaluation.reid_comparison import compare_methods, mean_report
from reposer.evaluation.reid_protocols import PROTOCOLS, find_protocol, fold_sets, trial_parts
from reposer.evaluation.reidentification import Expansion, evaluate_reid
from reposer.metrics.retrieval import RetrievalProtocol
from reposer.metrics.verification import verification
from reposer.reid.metric_learners import XQDA
from reposer.reid.search import expand_queries
from reposer.structures import FeatureSet


def _people(seed, count, people=12, cameras=6, size=6, first=1):
    rng = np.random.default_rng(seed)
    pids = rng.integers(first, first + people, count)
    features = np.random.default_rng(99).normal(size=(first + people, size))[pids] + rng.normal(
        size=(count, size)
    )
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    names = tuple(f"{seed}_{i}" for i in range(count))
    clothes = rng.integers(0, 2, count) + 10 * pids
    return FeatureSet(unit.astype(np.float32), pids, rng.integers(1, cameras + 1, count), names, clothes)


QUERY, GALLERY = _people(1, 60), _people(2, 400)


def _literal(query, gallery, keep, drawn=None, by_person=False):
    """Rank-1, rank-5 and step AP, image by image. ``keep(q, g)``: does it count; ``drawn``: the gallery."""
    rank1, rank5, ap = [], [], []
    for q in range(len(query)):
        rows = [g for g in (range(len(gallery)) if drawn is None else drawn) if keep(q, g)]
        distance = [np.linalg.norm(query.features[q].astype(float) - gallery.features[g]) for g in rows]
        ranked = [int(gallery.pids[rows[i]]) for i in np.argsort(distance)]
        hits = [pid == query.pids[q] for pid in ranked]
        if not any(hits):
            continue
        found = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        listed = list(dict.fromkeys(ranked)) if by_person else ranked
        first = listed.index(query.pids[q])
        rank1.append(first < 1)
        rank5.append(first < 5)
        ap.append(np.mean(found))
    return np.mean(rank1), np.mean(rank5), np.mean(ap)


def _values(result):
    return result.values.rank1, result.values.rank5, result.values.mAP_step


def _own_camera(q, g):
    return not (QUERY.pids[q] == GALLERY.pids[g] and QUERY.camids[q] == GALLERY.camids[g])


def test_ltcc_leaves_out_the_same_clothes():
    standard = evaluate_reid(QUERY, GALLERY, protocol=PROTOCOLS["ltcc_standard"])
    assert _values(standard) == pytest.approx(_literal(QUERY, GALLERY, _own_camera))
    changing = evaluate_reid(QUERY, GALLERY, protocol=PROTOCOLS["ltcc_cloth_changing"])
    expected = _literal(
        QUERY, GALLERY, lambda q, g: _own_camera(q, g) and QUERY.clothes[q] != GALLERY.clothes[g]
    )
    assert _values(changing) == pytest.approx(expected)
    assert changing.values.mAP_step != pytest.approx(standard.values.mAP_step)


def test_clothes_are_asked_for_where_a_protocol_needs_them():
    with pytest.raises(UserError, match="the query has no numbers of clothes"):
        evaluate_reid(replace(QUERY, clothes=None), GALLERY, protocol=PROTOCOLS["ltcc_cloth_changing"])
    unknown = replace(GALLERY, clothes=np.where(np.arange(400) == 7, -1, GALLERY.clothes))
    with pytest.raises(UserError, match="gallery row 7: clothes unknown"):
        evaluate_reid(QUERY, unknown, protocol=PROTOCOLS["ltcc_cloth_changing"])


def _drawn(protocol, query, gallery, trial, seed=0):
    return list(trial_parts(protocol, query, gallery, trial, seed))


@pytest.mark.parametrize(("name", "camera"), [("prcc_same_clothes", 2), ("prcc_cross_clothes", 3)])
def test_prcc_asks_camera_a_for_one_image_of_each_person(name, camera):
    protocol = find_protocol(name, trials=4)
    query = QUERY.rows(np.flatnonzero(QUERY.camids == camera))
    means = []
    for trial in range(4):
        ((rows, gallery_rows),) = _drawn(protocol, QUERY, GALLERY, trial)
        assert QUERY.camids[rows].tolist() == [camera] * len(query)
        assert (GALLERY.camids[gallery_rows] == 1).all()
        people = np.unique(GALLERY.pids[GALLERY.camids == 1])
        assert sorted(GALLERY.pids[gallery_rows].tolist()) == people.tolist()  # each once
        means.append(_literal(query, GALLERY, lambda q, g: True, gallery_rows))
    result = evaluate_reid(QUERY, GALLERY, protocol=protocol)
    assert _values(result) == pytest.approx(np.mean(means, axis=0))
    spread = [result.deviations[key] for key in ("rank1", "rank5", "mAP_step")]
    assert spread == pytest.approx(np.std(means, axis=0, ddof=1))
    assert (result.counts["trials"], result.counts["queries"]) == (4, 4 * len(query))
    assert result.cmc[0] == pytest.approx(result.values.rank1)


@pytest.mark.parametrize(("name", "shots"), [("sysu_all", 1), ("sysu_all", 3), ("sysu_indoor", 1)])
def test_sysu_asks_visible_cameras_and_counts_persons(name, shots):
    protocol = find_protocol(name, shots=shots, trials=3)
    cameras = [1, 2, 4, 5] if name == "sysu_all" else [1, 2]
    infrared = QUERY.rows(np.flatnonzero(np.isin(QUERY.camids, [3, 6])))
    means = []
    for trial in range(3):
        parts = {int(QUERY.camids[rows[0]]): found for rows, found in _drawn(protocol, QUERY, GALLERY, trial)}
        assert set(parts) == {3, 6}
        everything = parts[6]
        for pid in range(1, 13):
            for camera in cameras:
                there = int(((GALLERY.pids == pid) & (GALLERY.camids == camera)).sum())
                chosen = (GALLERY.pids[everything] == pid) & (GALLERY.camids[everything] == camera)
                assert chosen.sum() == min(shots, there)
        assert parts[3].tolist() == [g for g in everything.tolist() if GALLERY.camids[g] != 2]

        def meets(q, g):
            return not (infrared.camids[q] == 3 and GALLERY.camids[g] == 2)

        means.append(_literal(infrared, GALLERY, meets, everything, by_person=True))
    assert _values(evaluate_reid(QUERY, GALLERY, protocol=protocol)) == pytest.approx(np.mean(means, axis=0))


def test_single_shot_draws_fairly_and_by_the_seed():
    query = replace(QUERY, camids=np.ones(60, int))
    gallery = replace(GALLERY, camids=np.where(np.arange(400) % 4 == 0, 1, 2))
    protocol = find_protocol("single_shot", trials=1000)
    drawn = np.zeros(400)
    for trial in range(1000):
        ((_, rows),) = _drawn(protocol, query, gallery, trial)
        drawn[rows] += 1
    assert not drawn[::4].any()  # the query's own camera
    for pid in (1, 5):
        own = drawn[(gallery.pids == pid) & (gallery.camids == 2)]
        assert own.sum() == 1000
        assert np.abs(own - 1000 / len(own)).max() < 5 * np.sqrt(1000 / len(own))
    few = find_protocol("single_shot", trials=5)
    rows = [_drawn(few, query, gallery, trial)[0][1] for trial in range(5)]
    means = [_literal(query, gallery, lambda q, g: True, chosen) for chosen in rows]
    assert _values(evaluate_reid(query, gallery, protocol=few)) == pytest.approx(np.mean(means, axis=0))
    assert _values(evaluate_reid(query, gallery, protocol=few, seed=1)) != pytest.approx(
        np.mean(means, axis=0)
    )


def test_folds_fit_and_ask_other_people_each_time():
    everybody = replace(_people(5, 240, people=40, cameras=2), clothes=None)
    folds = fold_sets(everybody, 4, seed=3, train_people=25)
    assert len({tuple(np.unique(sets["train"].pids)) for sets in folds}) == 4
    reports, means = [], []
    for sets in folds:
        assert len(np.unique(sets["train"].pids)) == 25
        assert not np.intersect1d(sets["train"].pids, sets["query"].pids).size
        assert set(sets["query"].camids) == {1}
        assert set(sets["gallery"].camids) == {2}
        assert sum(map(len, sets.values())) == 240
        reports.append(compare_methods(sets["query"], sets["gallery"], sets["train"], methods=("xqda",)))
        metric = XQDA().fit(sets["train"].features, sets["train"].pids, sets["train"].camids)
        query, gallery = (
            replace(sets[name], features=metric.transform(sets[name].features))
            for name in ("query", "gallery")
        )
        means.append(_literal(query, gallery, lambda q, g: True))
    result = mean_report(reports, "folds").results["xqda"]
    assert _values(result) == pytest.approx(np.mean(means, axis=0))
    assert result.deviations["rank1"] == pytest.approx(np.std([m[0] for m in means], ddof=1))
    assert result.asked.trials == 4
    assert f"± {100 * result.deviations['rank1']:.2f}" in mean_report(reports, "folds").to_markdown()


def test_means_over_splits_name_every_row_and_hold_the_roc():
    splits = [_people(seed, 60) for seed in (11, 12)]
    first, second = (compare_methods(s, GALLERY, methods=("euclidean",), roc=True) for s in splits)
    cosine = compare_methods(splits[1], GALLERY, methods=("euclidean", "cosine"), roc=True)
    report = mean_report([first, cosine], "files")
    assert list(report.results) == ["euclidean"]
    assert report.missing == {
        "cosine": "missing in 1 of 2 files, first in number 1: no training people there"
    }
    assert "| cosine | not measured |" in report.to_markdown()
    parts, mean = [r.results["euclidean"].roc for r in (first, second)], report.results["euclidean"].roc
    for name in ("auc", "eer"):
        assert getattr(mean, name) == pytest.approx(np.mean([getattr(part, name) for part in parts]))
    assert mean.true_rates["0.01"] == pytest.approx(np.mean([part.true_rates["0.01"] for part in parts]))
    assert mean.genuine == sum(part.genuine for part in parts)
    for false, true in mean.curve[::20]:
        at = [max([t for f, t in part.curve if f <= false], default=0) for part in parts]
        assert true == pytest.approx(np.mean(at))
    assert "| euclidean |" in report.to_markdown().split("pairs, one to one")[1]


@pytest.mark.parametrize(
    ("sizes", "span"),
    [
        ((30, 25, 90), "25 to 90"),
        ((90, 30, 25), "25 to 90"),
        ((12, 12), "12"),
        ((9, 10), "9 to 10"),
        ((100, 99), "99 to 100"),
        ((1001, 1200), "1,001 to 1,200"),
    ],
)
@pytest.mark.parametrize("trials", [1, 2, 7])
def test_means_over_splits_say_how_many_queries_each_has(sizes, span, trials):
    protocol = find_protocol("single_shot", trials=trials)
    reports = []
    for size in sizes:
        pids = np.arange(1, size + 1)
        names = tuple(f"{pid}.jpg" for pid in pids)
        features = np.stack([np.ones(size), pids], axis=1).astype(np.float32)
        query, gallery = (FeatureSet(features, pids, np.full(size, camera), names) for camera in (1, 2))
        reports.append(compare_methods(query, gallery, methods=("euclidean",), protocol=protocol))
    assert f"of {span} queries each" in mean_report(reports, "files").notes[0]


@pytest.mark.parametrize("number", [0, 4, -1])
def test_folds_without_cameras_ask_by_the_first_image_of_each_person(number):
    everybody = replace(_people(7, 90, people=20), camids=np.full(90, number))
    pids = everybody.pids.tolist()
    for sets in fold_sets(everybody, 3):
        asking = [everybody.names.index(name) for name in sets["query"].names]
        tested = sorted(set(pids) - set(sets["train"].pids.tolist()))
        assert asking == sorted(pids.index(person) for person in tested)
        assert len(sets["gallery"]) == sum(pid in tested for pid in pids) - len(tested)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_query_expansion_adds_the_nearest_images(alpha):
    gallery = replace(GALLERY, pids=np.where(np.arange(400) % 9 == 0, -1, GALLERY.pids))
    expanded = expand_queries(QUERY, gallery, 5, alpha).features
    real = gallery.features[gallery.pids != -1].astype(np.float64)
    for q in range(len(QUERY)):
        own = QUERY.features[q].astype(np.float64)
        similarity = real @ own
        near = sorted(range(len(real)), key=lambda g: -similarity[g])[:5]
        total = own + sum(max(similarity[g], 0) ** alpha * real[g] for g in near)
        np.testing.assert_allclose(expanded[q], total / np.linalg.norm(total), atol=1e-6)
    report = compare_methods(QUERY, gallery, methods=("euclidean",), expand=Expansion(5, alpha))
    by_hand = evaluate_reid(replace(QUERY, features=expanded), gallery)
    assert report.results["euclidean + query expansion"].values == by_hand.values


def _equal_error(genuine, impostor):
    """Mean of FPR and 1 - TPR at the first of all distances where FPR is not the smaller."""
    for threshold in np.unique(np.concatenate([genuine, impostor])):
        false, missed = int((impostor <= threshold).sum()), int((genuine > threshold).sum())
        if false * len(genuine) >= missed * len(impostor):
            return (false / len(impostor) + missed / len(genuine)) / 2
    raise AssertionError


def _eer(genuine, impostor, parts=3):
    blocks = list(zip(np.array_split(genuine, parts), np.array_split(impostor, parts), strict=True))
    return verification(lambda: blocks).eer


@pytest.mark.parametrize(
    ("genuine", "impostor", "expected"),
    [
        ([*np.linspace(0.01, 0.09, 9), 0.9], np.linspace(0.2, 0.8, 100), 0.1),
        ([0.1, 0.9], [0.5], 0.75),  # FPR jumps from 0 to 1 while half of the genuine pairs are missed
        ([0.1, 0.9], [0.5, 0.5, 0.6, 0.7], 0.5),
        ([0.9], [0.1, 0.2, 0.2], 1.0),
        ([0.1, 0.2], [0.3], 0.0),
        ([0.5, 0.5], [0.5, 0.5], 0.5),
        ([1, 1, 1, 1, 1, 1, 1, 3, 3, 3], [2] * 3 + [4] * 7, 0.3),  # equal, where 1 - 7 / 10 is above 3 / 10
    ],
)
def test_the_equal_error_rate_is_read_at_the_distance_of_any_pair(genuine, impostor, expected):
    assert _eer(genuine, impostor) == pytest.approx(expected)
    assert _equal_error(np.array(genuine), np.array(impostor)) == pytest.approx(expected)


@pytest.mark.parametrize("held", [1, 3, 1 << 22])  # impostors at once: narrowed down to, or all of them
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [3, 12, 10**6])  # few: many ties
def test_the_equal_error_rate_of_small_sets(monkeypatch, held, kind, levels):
    monkeypatch.setattr("reposer.metrics.verification._HELD", held)
    rng = np.random.default_rng(levels)
    for _ in range(60):
        genuine, impostor = (
            (rng.integers(0, levels, rng.integers(1, 30)) / levels + shift).astype(kind)
            for shift in rng.choice([0, 0.1, 0.4], 2)
        )
        assert _eer(genuine, impostor) == pytest.approx(_equal_error(genuine, impostor), abs=1e-12)


@pytest.mark.parametrize("digits", [1, 6])  # one digit: many ties
def test_roc_counts_pairs(digits):
    rng = np.random.default_rng(4)
    labels = (QUERY.pids, QUERY.camids, np.where(rng.random(400) < 0.1, -1, GALLERY.pids), GALLERY.camids)
    distance = np.round(np.linalg.norm(QUERY.features[:, None] - GALLERY.features, axis=2), digits)
    protocol = RetrievalProtocol(*labels)
    told = verification(lambda: (protocol.pairs(distance[i : i + 7], i) for i in range(0, 60, 7)))
    genuine, impostor = [], []
    for q in range(60):
        for g in range(400):
            if labels[2][g] == -1 or (labels[0][q] == labels[2][g] and labels[1][q] == labels[3][g]):
                continue
            (genuine if labels[0][q] == labels[2][g] else impostor).append(distance[q, g])
    genuine, impostor = np.array(genuine), np.array(impostor)
    assert (told.genuine, told.impostor) == (len(genuine), len(impostor))
    wins = (genuine[:, None] < impostor).mean() + (genuine[:, None] == impostor).mean() / 2
    assert told.auc == pytest.approx(wins)
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        thresholds = [t for t in np.unique(genuine) if (impostor <= t).mean() <= rate]
        best = (genuine <= thresholds[-1]).mean() if thresholds else 0
        assert told.true_rates[f"{rate:g}"] == pytest.approx(best)
    assert told.eer == pytest.approx(_equal_error(genuine, impostor))
    result = evaluate_reid(QUERY, GALLERY, roc=True)
    assert 0.5 < result.roc.auc < 1
    assert len(result.to_json()["roc"]["curve"]) <= 200


def test_rank_20_is_the_curves_twentieth_value():
    result = evaluate_reid(QUERY, GALLERY)
    assert result.values.rank20 == result.cmc[19]


def test_impossible_protocols_are_named():
    for arguments, problem in (
        (("market",), "protocol market: unknown: did you mean market1501"),
        (("market1501", 1), "draws no samples"),
        (("sysu_all", 0), "0 gallery images"),
        (("sysu_all", None, 10**9), "1000000000 trials"),
    ):
        with pytest.raises(UserError, match=problem):
            find_protocol(*arguments)
    one_camera = replace(QUERY, camids=np.full(60, 9))
    with pytest.raises(UserError, match="no query is of camera 3 or 6"):
        evaluate_reid(one_camera, GALLERY, protocol=PROTOCOLS["sysu_all"])
    two = replace(QUERY, camids=np.where(np.arange(60) == 0, 8, 9))
    with pytest.raises(UserError, match="queries of camera 9 have no gallery"):
        evaluate_reid(two, replace(GALLERY, camids=np.full(400, 9)), protocol=PROTOCOLS["single_shot"])
    for count, alpha in ((0, 1.0), (3, -1.0), (3, np.nan)):
        with pytest.raises(UserError, match="query expansion by"):
            expand_queries(QUERY, GALLERY, count, alpha)
    for folds, people in ((0, None), (3, 12), (3, 0)):
        with pytest.raises(UserError, match=r"folds|for training"):
            fold_sets(QUERY, folds, train_people=people)
