"""Donor policies against what was planted and against slow readings of their rules."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
from planted import SHOULDERS, Planted, pack_planted

from reposer.data.layouts.market1501 import MAX_COPY, generated_name, is_generated
from reposer.data.orientation import ORIENTATIONS, face_share, orientation
from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.generation import donors
from reposer.generation.donors import (
    POLICIES,
    DonorPlan,
    PictureNames,
    choose_donors,
    distinct,
    other_groups,
    same_group,
)
from reposer.studies.study_stages import pose_coverage

LOWERS = ("pants", "shorts", "skirt", "dress")


def _crowd() -> list[Planted]:
    """48 training images of 12 people in 3 cameras, each person in one outfit; 6 images of other splits."""
    rng = np.random.default_rng(0)
    facings = list(SHOULDERS)
    people = []
    for pid in range(1, 13):
        seen = rng.choice(facings, 2, replace=False)
        for shot in range(4):
            people.append(
                Planted(
                    pid=pid,
                    camid=1 + (pid + shot) % 3,
                    lower=LOWERS[pid % 4],
                    facing=str(seen[shot % 2]),
                    stride=float(rng.uniform(0, 1)),
                )
            )
    people += [Planted(pid=90 + i, split=split) for i, split in enumerate(("val", "query", "gallery") * 2)]
    return people


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> PackedPeople:
    return pack_planted(tmp_path_factory.mktemp("crowd"), _crowd())


def _pairs(plan: DonorPlan) -> list[tuple[int, int]]:
    return list(zip(plan.source.tolist(), plan.donor.tolist(), strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_rules(crowd, policy):
    plan = choose_donors(crowd, policy, 4, seed=3)
    pairs = _pairs(plan)
    assert len(pairs) == len(set(pairs)) == 3 * 48  # nobody is re-posed twice into the same pose
    assert all(source != donor for source, donor in pairs)
    assert set(crowd.splits[plan.source]) == set(crowd.splits[plan.donor]) == {"train"}
    assert plan.source.tolist() == sorted(plan.source.tolist())
    assert plan.copy.tolist() == [1, 2, 3] * 48
    again = choose_donors(crowd, policy, 4, seed=3)
    assert _pairs(again) == pairs
    assert _pairs(choose_donors(crowd, policy, 4, seed=4)) != pairs
    first = plan.copy == 1  # a larger factor only adds
    assert _pairs(choose_donors(crowd, policy, 2, seed=3)) == [
        pair for pair, keep in zip(pairs, first, strict=True) if keep
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_leaves_the_rows_it_is_given(crowd, policy):
    rows = np.arange(0, 48, 2)
    plan = choose_donors(crowd, policy, 3, rows=rows)
    assert set(plan.source.tolist()) | set(plan.donor.tolist()) <= set(rows.tolist())


def test_cameras_and_people(crowd):
    def sides(policy: str, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plan = choose_donors(crowd, policy, 4)
        return field[plan.source], field[plan.donor]

    source, donor = sides("same_camera", crowd.camids)
    assert (source == donor).all()
    source, donor = sides("other_camera", crowd.camids)
    assert (source != donor).all()
    source, donor = sides("same_identity", crowd.pids)
    assert (source == donor).all()


def test_compatible_never_puts_a_skirt_on_trousers(crowd):
    people = _crowd()
    plan = choose_donors(crowd, "compatible", 4)
    assert all(people[s].lower == people[d].lower for s, d in _pairs(plan))
    free = choose_donors(crowd, "any", 4)
    assert any(people[s].lower != people[d].lower for s, d in _pairs(free))


def test_compatible_widens_a_rare_outfit_and_says_so(tmp_path):
    people = [Planted(pid=i, lower="pants" if i % 2 else "skirt") for i in range(1, 31)]
    people[0] = Planted(pid=1, lower="pants", hat=True)  # the only hat
    plan = choose_donors(pack_planted(tmp_path, people), "compatible", 3)
    donors = plan.donor[plan.source == 0]
    assert len(donors) == 2
    assert all(people[d].lower == "pants" for d in donors)
    assert any("1 rare outfits" in note for note in plan.notes)


def test_same_identity_leaves_out_people_with_one_image_and_counts_them(tmp_path):
    people = [Planted(pid=1), Planted(pid=1), Planted(pid=1), Planted(pid=2), Planted(pid=3), Planted(pid=3)]
    plan = choose_donors(pack_planted(tmp_path, people), "same_identity", 3)
    assert sorted(_pairs(plan)) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (4, 5), (5, 4)]
    assert "1 of 6 images have no donor" in plan.notes[0]
    assert "2 have fewer than 2: 4 pictures fewer" in plan.notes[0]


def test_coverage_takes_the_missing_orientations_first(tmp_path):
    facings = list(SHOULDERS)
    own = [Planted(pid=1, facing=name) for name in ("front", "front", "back", "right")]
    others = [Planted(pid=2 + i, facing=facings[i % 8], stride=i / 40) for i in range(40)]
    packed = pack_planted(tmp_path, own + others)
    plan = choose_donors(packed, "coverage", 3)
    mine = np.isin(plan.source, range(4))
    everyone = orientation(packed.keypoints, face_share(packed.parsing))
    assert [ORIENTATIONS[i] for i in everyone[:4]] == ["front", "front", "back", "right"]
    # eight choices: five orientations are missing; then three have 2 (front) or 1 (the others)
    first = everyone[plan.donor[mine & (plan.copy == 1)]]
    assert len(set(first.tolist())) == 4
    assert not set(first.tolist()) & {0, 2, 4}
    counts = np.bincount(np.concatenate([everyone[:4], everyone[plan.donor[mine]]]), minlength=8)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert (packed.pids[plan.donor[mine]] != 1).all()


def test_coverage_covers_more_than_chance(crowd):
    rows = np.flatnonzero(crowd.splits == "train")
    real = pose_coverage(crowd, rows)
    chance, filled = (pose_coverage(crowd, rows, choose_donors(crowd, p, 2)) for p in ("any", "coverage"))
    assert real["orientations"] == 2  # as planted
    assert real["orientations"] < chance["orientations"] < filled["orientations"]
    assert filled["worst_pose_gap"] < chance["worst_pose_gap"] < real["worst_pose_gap"]


def test_canonical_shows_all_eight_orientations_by_the_nearest_donors(tmp_path):
    strides = (0.5, 0.5, 0.5, 0.4, 0.6, 0.5)
    people = [
        Planted(pid=pid, facing=facing, stride=stride)
        for pid, stride in enumerate(strides, 1)
        for facing in SHOULDERS
    ]
    packed = pack_planted(tmp_path, people)
    plan = choose_donors(packed, "canonical", 9)
    shown = orientation(packed.keypoints, face_share(packed.parsing))[plan.donor].reshape(-1, 8)
    assert (np.sort(shown, axis=1) == np.arange(8)).all()


def test_images_without_maps_or_poses(tmp_path):
    people = [Planted(pid=1 + i // 2, facing=list(SHOULDERS)[i % 8]) for i in range(16)]
    people[3] = Planted(pid=2, parsing=False)
    people[5] = Planted(pid=3, facing=None)
    packed = pack_planted(tmp_path, people)
    plan = choose_donors(packed, "any", 5)
    assert 3 not in {*plan.source.tolist(), *plan.donor.tolist()}
    assert "1 of 16 images have no parsing map" in plan.notes[0]
    plan = choose_donors(packed, "coverage", 2)
    assert 5 in plan.source
    assert 5 not in plan.donor
    assert any(note.startswith("1 images are no donors") for note in plan.notes)


def test_refusals(crowd, tmp_path):
    with pytest.raises(UserError, match=r"policy nearest: unknown: did you mean .* known: any, "):
        choose_donors(crowd, "nearest", 2)
    with pytest.raises(UserError, match="factor 1: gives no generated image"):
        choose_donors(crowd, "any", 1)
    with pytest.raises(UserError, match="factor 0: is impossible"):
        choose_donors(crowd, "any", 0)
    with pytest.raises(UserError, match=r"factor 1001: a name holds 999 copies of an image: at most 1000"):
        choose_donors(crowd, "any", 1001)
    assert is_generated(generated_name("a.jpg", MAX_COPY, "jpg"))
    assert not is_generated(generated_name("a.jpg", MAX_COPY + 1, "jpg"))
    with pytest.raises(UserError, match=r"row 48 .* is of split val: donors and sources must be training"):
        choose_donors(crowd, "any", 2, rows=np.array([0, 48]))
    with pytest.raises(UserError, match="has 54 rows"):
        choose_donors(crowd, "any", 2, rows=np.array([0, 54]))
    for policy in POLICIES:
        with pytest.raises(UserError, match="finds no donor for any of 0 images"):
            choose_donors(crowd, policy, 2, rows=np.empty(0, np.int64))
    alone = pack_planted(tmp_path, [Planted(pid=i + 1, facing=None) for i in range(4)])
    for policy in ("same_identity", "other_camera", "coverage", "canonical"):
        with pytest.raises(UserError, match=f"policy {policy} finds no donor for any of 4 images") as caught:
            choose_donors(alone, policy, 2)
        assert "\n" not in str(caught.value)


def test_draws_are_uniform_and_without_repetition():
    sizes = np.repeat([0, 1, 2, 5], 4000)
    picks = distinct(sizes, seed=1, copies=3)
    for size in (0, 1, 2, 5):
        block = picks[sizes == size]
        taken = np.minimum(size, 3)
        assert (block[:, taken:] == -1).all()
        assert (block[:, :taken] >= 0).all()
        assert all(len(set(row)) == taken for row in block[:, :taken].tolist())
        if size:
            share = np.stack([np.bincount(column, minlength=size) for column in block[:, :taken].T]) / 4000
            np.testing.assert_allclose(share, 1 / size, atol=0.03)  # each draw alone; sd is 0.008


def test_groups_against_plain_sets():
    keys = np.random.default_rng(2).integers(0, 5, 40) * 7 - 3
    inside, outside = same_group(keys, 0, 60), other_groups(keys, 0, 60)
    for i, key in enumerate(keys):
        same = {j for j in range(40) if keys[j] == key} - {i}
        other = {j for j in range(40) if keys[j] != key}
        assert set(inside[i].tolist()) - {-1} == same
        assert set(outside[i].tolist()) - {-1} == other
        assert (inside[i] >= 0).sum() == len(same)
        assert (outside[i] >= 0).sum() == len(other)


def test_a_plan_s_hash_and_names_are_those_of_its_lists(crowd, monkeypatch):
    monkeypatch.setattr(donors, "_PIECE", 7)
    plan = choose_donors(crowd, "any", 4, seed=3)
    lists = [plan.source.tolist(), plan.donor.tolist(), plan.copy.tolist()]
    assert plan.sha256() == hashlib.sha256(json.dumps(lists, separators=(",", ":")).encode()).hexdigest()
    names = PictureNames(crowd.names, plan, "jpg")
    stems = [name.removesuffix(".png").removesuffix(".jpg") for name in crowd.names]
    wanted = [f"{stems[source]}_g0{copy}.jpg" for source, copy in zip(lists[0], lists[2], strict=True)]
    assert list(names) == names[:] == wanted
    assert names[5:9] == wanted[5:9]


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (["A_1.jpg", "a_1.png"], "a_1_g01.jpg: two files would have this name"),
        (["a.jpg", f"{'b' * 92}.jpg"], "too long"),  # 100 bytes are the most: with copy 100 it has 101
    ],
)
def test_names_that_no_disk_could_hold_are_refused_whatever_copy_they_are_of(images, reason):
    source, copy = np.repeat([0, 1], 100), np.tile(np.arange(1, 101), 2)
    with pytest.raises(UserError, match=reason):
        PictureNames(images, DonorPlan(source, 1 - source, copy, []), "jpg")


def test_an_image_of_another_alphabet_has_pictures_with_portable_names():
    names = PictureNames(
        ["a.jpg", "b c.jpg"], DonorPlan(np.array([0, 1]), np.array([1, 0]), np.ones(2, int), []), "jpg"
    )
    assert names[0] == "a_g01.jpg"
    assert re.fullmatch(r"b_c-[0-9a-f]{8}_g01\.jpg", names[1])
