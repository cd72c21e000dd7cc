"""The full Market-1501 protocol on the 36,036 official names with seeded features, against literal loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reposer.data.layouts.market1501 import parse_name
from reposer.data.samplers import ClassGroups, draw_people
from reposer.evaluation.reidentification import Rerank, evaluate_reid
from reposer.reid.metric_learners import KISSME, XQDA
from reposer.reid.quadratic import pair_statistics
from reposer.structures import FeatureSet

LISTS = Path(__file__).parents[3] / "shared" / "data" / "market1501" / "lists"
SIZE = 64

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not LISTS.is_dir(), reason="the official name lists are not beside the repository"),
]


def _labels(which):
    names = tuple((LISTS / f"official-{which}-names.txt").read_text().split())
    parsed = [parse_name(name) for name in names]
    return names, np.array([p.pid for p in parsed]), np.array([p.camid for p in parsed])


@pytest.fixture(scope="module")
def people():
    """Person + camera + noise features: Market's labels decide what is a match."""
    rng = np.random.default_rng(0)
    centers, cameras = rng.normal(size=(1502, SIZE)), 0.5 * rng.normal(size=(7, SIZE))
    sets = {}
    for which in ("train", "query", "test"):
        names, pids, camids = _labels(which)
        noise = 1.3 * rng.normal(size=(len(names), SIZE))
        person = np.where((pids > 0)[:, None], centers[pids], rng.normal(size=(len(names), SIZE)))
        sets[which] = FeatureSet((person + cameras[camids] + noise).astype(np.float32), pids, camids, names)
    return sets


@pytest.fixture(scope="module")
def result(people):
    return evaluate_reid(people["query"], people["test"])


def test_the_label_structure_is_markets(people, result):
    assert [len(people[which]) for which in ("train", "query", "test")] == [12_936, 3_368, 19_732]
    assert sum(name.endswith(".jpg.jpg") for s in people.values() for name in s.names) == 24
    expected = {"queries": 3_368, "queries_with_valid_match": 3_368, "query_identities": 750}
    expected |= {"gallery": 19_732, "gallery_junk": 3_819, "gallery_distractors": 2_798}
    assert {name: result.counts[name] for name in expected} == expected
    hits = result.scores.hits
    assert (hits.min(), hits.max(), round(hits.mean(), 1)) == (1, 68, 14.7)
    own_camera = 19_732 - 3_819 - result.scores.valid
    assert (round(own_camera.mean(), 1), own_camera.max()) == (3.9, 43)
    assert not set(people["train"].pids) & set(people["query"].pids)


def test_every_tenth_query_equals_literal_loops_in_float64(people, result):
    query, gallery = people["query"], people["test"]
    q, g = (
        x.features / np.linalg.norm(x.features.astype(np.float64), axis=1, keepdims=True)
        for x in (query, gallery)
    )
    for i in range(0, 3_368, 10):
        out = (gallery.pids == -1) | ((gallery.pids == query.pids[i]) & (gallery.camids == query.camids[i]))
        distance = np.where(out, np.inf, 2 - 2 * g @ q[i])
        order = np.argsort(distance)[: (~out).sum()]
        found, step, trapezoid, before = 0, 0.0, 0.0, 1.0
        hits = gallery.pids[order] == query.pids[i]
        total = hits.sum()
        for position in range(len(order)):
            found += hits[position]
            precision = found / (position + 1)
            if hits[position]:
                step += precision / total
                trapezoid += (before + precision) / 2 / total
            before = precision
            if found == total:
                break
        assert result.scores.worst.first_hit[i] == np.argmax(hits) + 1
        assert result.scores.worst.ap_step[i] == pytest.approx(step, abs=1e-5)
        assert result.scores.worst.ap_trapezoid[i] == pytest.approx(trapezoid, abs=1e-5)
        assert result.scores.worst.inp[i] == pytest.approx(total / (position + 1), abs=1e-3)


def test_common_mistakes_move_the_numbers_as_known(people, result):
    """Dropping distractors helps, keeping junk as negatives hurts, keeping the own camera helps a lot."""
    query, gallery = people["query"], people["test"]

    def changed(pids, rows=None):
        rows = np.arange(len(gallery)) if rows is None else rows
        names = tuple(gallery.names[i] for i in rows)
        return FeatureSet(gallery.features[rows], pids[rows], gallery.camids[rows], names)

    headline = result.values.mAP_step
    no_distractors = evaluate_reid(query, changed(gallery.pids, np.flatnonzero(gallery.pids != 0)))
    assert no_distractors.values.mAP_step > headline
    junk_counts = evaluate_reid(query, changed(np.where(gallery.pids == -1, 0, gallery.pids)))
    assert junk_counts.values.mAP_step < headline
    own_camera = evaluate_reid(query, gallery, exclude_same_camera=False)
    assert own_camera.values.mAP_step > headline
    assert result.values.mAP_trapezoid < headline


def test_training_pairs_are_the_known_numbers(people):
    train = people["train"]
    statistics = pair_statistics(train.features[:, :2], train.pids, train.camids)
    assert statistics.similar_pairs == 114_025
    assert statistics.dissimilar_pairs == 67_976_279


@pytest.mark.slow
def test_learned_distances_and_reranking_at_full_size(people, result):
    query, gallery, train = people["query"], people["test"], people["train"]
    unit = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    for metric in (XQDA(), KISSME()):
        learned = evaluate_reid(query, gallery, distance=metric.fit(unit, train.pids, train.camids))
        assert learned.values.mAP_step > result.values.mAP_step
    reranked = evaluate_reid(query, gallery, rerank=Rerank())
    assert reranked.values.mAP_step > result.values.mAP_step + 0.02


def test_the_people_that_bag_of_tricks_draws(people):
    """As docs/explanation/reid.md says: an epoch has 61 % of the distinct images, the original 90 %."""
    pids = people["train"].pids
    labels = np.unique(pids, return_inverse=True)[1]
    groups, steps = ClassGroups.of(labels), 12_936 // 64
    drawn = np.concatenate([draw_people(groups, 16, 4, 0, step) for step in range(steps)])
    times = np.bincount(labels[drawn], minlength=751) // 4
    assert times.max() - times.min() == 1
    assert len(np.unique(drawn)) / 12_936 == pytest.approx(0.61, abs=0.01)

    rng = np.random.default_rng(0)  # the original: a person is drawn until fewer than four images are left
    left = {}
    for label in range(751):
        images = rng.permutation(np.flatnonzero(labels == label))
        if len(images) < 4:
            images = rng.choice(images, 4)
        left[label] = [images[i : i + 4] for i in range(0, len(images) - len(images) % 4, 4)]
    original = []
    while len(left) >= 16:
        for label in rng.choice(list(left), 16, replace=False):
            original.append(left[label].pop(0))
            if not left[label]:
                del left[label]
    original = np.concatenate(original)
    times = np.bincount(labels[original], minlength=751)
    assert (times.min(), len(np.unique(original)) / 12_936) == (4, pytest.approx(0.90, abs=0.01))
    assert times.max() in range(52, 73, 4)
