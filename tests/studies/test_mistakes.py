"""Mistaken pictures and margins, one picture at a time; what is known of them, against the packed people."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_study import ARMS, tiny

from reposer.generation.poses import LOWER, outfits
from reposer.jobs.stages import work
from reposer.reid.features import read_features
from reposer.storage.manifest import read_rows
from reposer.structures import FeatureSet
from reposer.studies.mistakes import FACTORS, MISTAKES, TERCILES, _terciles, judged
from reposer.studies.plan import REAL_IMAGES, StudyPlan
from reposer.studies.report import shares, write_mistakes
from reposer.studies.study_stages import FEATURES, SET


def unit(rng, count):
    features = rng.normal(size=(count, 5)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_a_picture_is_mistaken_when_somebody_else_is_nearer():
    rng = np.random.default_rng(0)
    pids = np.array([1, 1, 1, 2, 2, 3, 4, 4])
    names = tuple(f"{i}.jpg" for i in range(8))
    real = FeatureSet(unit(rng, 8), pids, np.ones(8, np.int64), names)
    pictures, sources = unit(rng, 300), rng.integers(0, 8, 300)
    told = judged(pictures, pids[sources], [names[s] for s in sources], real)
    mistaken = told[0]
    for picture, source, wrong, own, margin in zip(pictures, sources, *told, strict=True):
        gaps = {i: np.linalg.norm(picture - real.features[i]) for i in range(8) if i != source}
        mine = [gap for i, gap in gaps.items() if pids[i] == pids[source]]
        if not mine:
            assert np.isnan(own)  # person 3 has one image
            assert np.isnan(margin)
            continue
        others = min(gap for i, gap in gaps.items() if pids[i] != pids[source])
        assert own == pytest.approx(min(mine), abs=1e-5)
        assert margin == pytest.approx(others - min(mine), abs=1e-5)
        assert wrong == (others <= min(mine))
    assert 0.1 < mistaken[sources != 5].mean() < 0.9


def test_an_equal_distance_counts_against_the_picture():
    features = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    real = FeatureSet(features, np.array([1, 1, 2]), np.ones(3, np.int64), ("a", "b", "c"))
    assert judged(features[:1], np.array([1]), ["a"], real)[0].tolist() == [True]


def test_thirds_are_thirds():
    values = np.random.default_rng(0).permutation(np.r_[np.arange(9.0), np.nan])
    found = _terciles(values)
    assert [set(values[found == name]) for name in TERCILES] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]
    assert found[np.isnan(values)].tolist() == ["unknown"]


def test_shares_count_pictures_and_their_spread_counts_people():
    mistaken = [True, False, False, False, True, True]
    columns = {
        "pid": [1, 1, 1, 1, 2, 2],
        "mistaken": mistaken,
        "donor": ["same person"] * 4 + ["unknown"] * 2,
    }
    everything, same, unknown = shares(pa.table(columns))
    assert everything["margin"] is None  # judged by an earlier version
    assert everything["mistaken"] == 0.5
    assert (everything["low"], everything["high"]) == (0.0, 1.0)  # two people: it may be any share
    assert (same["bin"], same["pictures"], same["people"], same["mistaken"]) == ("same person", 4, 1, 0.25)
    assert same["low"] is None  # one person says nothing about others
    assert (unknown["mistaken"], unknown["low"]) == (1.0, None)  # nor do values that are all alike
    with_margin = shares(pa.table(columns | {"margin": [0.1, 0.2, 0.3, 0.4, -0.2, np.nan]}))
    assert [row["margin"] for row in with_margin] == pytest.approx([0.16, 0.25, -0.2])
    low, high = (with_margin[0][f"margin_{end}"] for end in ("low", "high"))
    assert (low, high) == pytest.approx((-0.2, 0.4))  # two people: from the least picture to the best
    assert with_margin[1]["margin_low"] is None
    assert [row["mistaken"] for row in with_margin] == [0.5, 0.25, 1.0]


def test_a_margin_grows_where_a_yes_or_no_stands_still():
    """Pictures between a person and another: all mistaken or all not, and yet some more than others."""
    real = FeatureSet(
        np.eye(3, dtype=np.float32)[[0, 0, 1]], np.array([1, 1, 2]), np.ones(3, np.int64), ("a", "b", "c")
    )
    angles = np.radians([0, 10, 30, 44.9, 45, 60, 90])
    pictures = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1).astype(np.float32)
    ones = np.ones(len(angles), np.int64)
    mistaken, _, margin = judged(pictures, ones, ["a"] * len(angles), real)
    assert mistaken.tolist() == [False] * 4 + [True] * 3
    assert (np.diff(margin) < -1e-4).all()
    chords = 2 * np.sin(np.abs(np.radians(90) - angles) / 2) - 2 * np.sin(angles / 2)
    np.testing.assert_allclose(margin, chords, atol=1e-6)
    alone = FeatureSet(real.features[:2], real.pids[:2], real.camids[:2], real.names[:2])
    assert np.isnan(judged(pictures[:1], ones[:1], ["a"], alone)[2]).all()  # nobody else: no margin


def test_a_study_tells_which_of_its_pictures_are_mistaken(small_prepared, tmp_path):
    study = tiny(small_prepared, arms=(ARMS[0], ARMS[2], ARMS[3]), controls=(), seeds=(0,))
    plan = StudyPlan(study, tmp_path)
    assert [part.name for part in plan.mistakes] == [REAL_IMAGES, "generated"]  # half_weight's are the same
    needs = {need.key: need for part in plan.mistakes for need in part.stage.needs}
    work(plan.cache, [*needs.values(), *(part.stage for part in plan.mistakes)])
    people, real, made = plan.people, *plan.mistakes
    found = pq.read_table(plan.cache.file(made.stage, MISTAKES))
    assert set(FACTORS) <= set(found.column_names)
    rows = read_rows(plan.cache.folder(made.stage.needs[2]) / SET)
    source, donor = (
        np.array([people.index(name) for name in rows[side].to_pylist()]) for side in ("source", "donor")
    )
    assert found["pid"].to_pylist() == people.pids[source].tolist()
    worn = [outfits(people.parsing, side).lower for side in (source, donor)]
    assert found["source_lower"].to_pylist() == [LOWER[number] for number in worn[0]]
    related = np.array(found["donor"].to_pylist())
    assert ((related == "same person") == (people.pids[source] == people.pids[donor])).all()
    assert (worn[0] == worn[1])[related == "same lower garment"].all()
    assert (worn[0] != worn[1])[related == "another lower garment"].all()
    floor = pq.read_table(plan.cache.file(real.stage, MISTAKES))
    features = read_features(plan.cache.file(real.stage.needs[1], FEATURES))["train"]
    distance = ((features.features[:, None] - features.features[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    nearest = features.pids[distance.argmin(1)]
    assert floor["mistaken"].to_pylist() == (nearest != features.pids).tolist()
    distance[features.pids[:, None] == features.pids[None]] = np.inf
    others = np.sqrt(distance.min(1))
    assert (np.array(floor["margin"].to_pylist()) < others).all()
    assert [margin <= 0 for margin in found["margin"].to_pylist()] == found["mistaken"].to_pylist()
    section = write_mistakes(plan, tmp_path)
    means = [np.mean(table["margin"].to_pylist()) for table in (floor, found)]
    first = section.tables[1].rows[0]
    assert section.tables[1].caption == "100 % of the images, mean margin"
    assert [cell.split(" ")[0] for cell in first[1:]] == [f"{mean:.3f}" for mean in means]
    assert section.tables[0].columns == ["pictures", REAL_IMAGES, "generated"]
    share = 100 * np.mean(found["mistaken"].to_pylist())
    assert section.tables[0].rows[0][2].startswith(f"{share:.0f} % [")
    assert f"| {section.tables[0].rows[0][2]} |" in (tmp_path / "mistakes.md").read_text()
    table = pq.read_table(tmp_path / "mistakes.parquet").to_pylist()
    counts = {(row["arm"], row["factor"]): 0 for row in table}
    for row in table:
        counts[row["arm"], row["factor"]] += row["pictures"]
    assert set(counts.values()) == {found.num_rows}  # every picture is in one bin of every factor
    json.dumps(table)
