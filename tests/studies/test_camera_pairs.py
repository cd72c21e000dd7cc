"""Gains by pairs of cameras, against the protocol written out by loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_study import ARMS, tiny

from reposer.config import config_bytes
from reposer.jobs.stages import work
from reposer.reid.features import read_features
from reposer.structures import FeatureSet
from reposer.studies.camera_pairs import between_cameras, compare_cameras, write_cameras
from reposer.studies.config import STUDY_FILE
from reposer.studies.plan import StudyPlan
from reposer.studies.study_stages import FEATURES


def drawn(rng, count, cameras=3):
    features = rng.normal(size=(count, 4)).astype(np.float32)
    pids, camids = rng.integers(1, 5, count), rng.integers(1, cameras + 1, count)
    return FeatureSet(features, pids, camids, tuple(f"{i}.jpg" for i in range(count)))


def by_loops(query, gallery, row, camera):
    """Mean of the precisions at the hits, one query in one camera; NaN where nobody is to be found."""
    if query.camids[row] == camera:
        return np.nan
    there = [i for i in range(len(gallery)) if gallery.camids[i] == camera and gallery.pids[i] != -1]
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731  one line
    there.sort(key=lambda i: np.linalg.norm(unit(gallery.features[i]) - unit(query.features[row])))
    hits = [rank for rank, i in enumerate(there, start=1) if gallery.pids[i] == query.pids[row]]
    return np.mean([n / rank for n, rank in enumerate(hits, start=1)]) if hits else np.nan


def test_each_camera_is_a_gallery_of_its_own():
    rng = np.random.default_rng(0)
    query, gallery = drawn(rng, 30), drawn(rng, 60)
    gallery.pids[:6] = (0, 0, 0, -1, -1, -1)  # distractors stand in the way, junk does not
    gallery.pids[gallery.camids == 3] = np.where(gallery.pids[gallery.camids == 3] == 2, 1, 3)
    found = between_cameras(query, gallery)
    assert sorted(found) == [1, 2, 3]
    for camera, one in found.items():
        wanted = [by_loops(query, gallery, row, camera) for row in range(30)]
        np.testing.assert_allclose(one.precision, wanted, atol=1e-6)
        assert np.isnan(one.precision[query.camids == camera]).all()
    assert np.isnan(found[3].precision[query.pids == 2]).all()


def test_queries_of_unknown_cameras_alone_tell_nothing():
    rng = np.random.default_rng(4)
    query, gallery = drawn(rng, 5), drawn(rng, 20)
    assert between_cameras(replace(query, camids=np.full(5, -1)), gallery) == {}


def test_images_of_unknown_cameras_are_left_out():
    rng = np.random.default_rng(1)
    query, gallery = drawn(rng, 20), drawn(rng, 40)
    lost = replace(gallery, camids=np.where(np.arange(40) < 10, -1, gallery.camids))
    found = between_cameras(query, lost)
    rest = between_cameras(query, gallery.rows(np.arange(10, 40)))
    assert found.keys() == rest.keys()
    for camera, one in rest.items():
        np.testing.assert_array_equal(found[camera].precision, one.precision)
    nowhere = [replace(each, camids=np.full(len(each), -1)) for each in (query, gallery)]
    assert between_cameras(*nowhere) == {}


def test_a_pair_tells_what_the_arm_is_above_the_control():
    rng = np.random.default_rng(2)
    query, gallery = drawn(rng, 40, cameras=2), drawn(rng, 60, cameras=2)
    seeds = [replace(gallery, features=rng.normal(size=(60, 4)).astype(np.float32)) for _ in range(4)]
    arm, control = ([between_cameras(query, each) for each in part] for part in (seeds[:2], seeds[2:]))
    rows = compare_cameras(arm, control)
    assert [(row["query_camera"], row["gallery_camera"]) for row in rows] == [(1, 2), (2, 1)]
    for row in rows:
        means = [
            np.nanmean([one[row["gallery_camera"]].precision for one in part]) for part in (arm, control)
        ]
        assert row["mean"] == pytest.approx(means[0])
        assert row["difference"] == pytest.approx(means[0] - means[1])
        assert row["low"] < row["difference"] < row["high"]
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in compare_cameras(arm, arm))
    alone = query.rows(np.flatnonzero(query.pids == 1))
    one = [between_cameras(alone, gallery)]
    assert {row["low"] for row in compare_cameras(one, one)} == {None}  # one person tells no spread


def test_a_study_tells_between_which_cameras_its_arms_gain(small_prepared, tmp_path):
    study = tiny(small_prepared, arms=ARMS[:2], controls=("real",))
    plan = StudyPlan(study, tmp_path)
    (tmp_path / STUDY_FILE).write_bytes(config_bytes(study))
    work(plan.cache, [stage for stage in plan.stages if stage.kind in ("augmented", "training", "features")])
    section = write_cameras(plan, tmp_path)
    (table,) = section.tables
    assert table.columns == ["cameras", "queries", "real", "real_repeated"]
    rows = pq.read_table(tmp_path / "cameras.parquet").to_pylist()
    assert len(rows) == 2 * len(table.rows)
    assert {row["control"] for row in rows} == {"real"}
    assert all(row["difference"] == 0 for row in rows if row["arm"] == "real")
    sets = read_features(plan.cache.file(plan.cells[0].features, FEATURES))
    asked = sum(
        bool(((sets["gallery"].pids == pid) & (sets["gallery"].camids == there)).any())
        for pid, own in zip(sets["query"].pids, sets["query"].camids, strict=True)
        for there in set(sets["gallery"].camids.tolist()) - {own}
    )
    assert asked == sum(row["queries"] for row in rows if row["arm"] == "real")
    assert table.rows[0][3] in (tmp_path / "cameras.md").read_text()
    without = StudyPlan(study.changed(controls=()), tmp_path)
    assert write_cameras(without, tmp_path) is None
