"""Further sources of a pair: whose they are, in which order they are wished for, what is never one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reposer.data.packed import PackedPeople
from reposer.data.sources import FurtherSources, draw_counts
from reposer.data.transforms import flip_pairs


class Planted:
    """Packed people of whom only labels and orientations matter."""

    def __init__(self, rows: list[tuple[int, int, str]], splits: list[str] | None = None) -> None:
        self.splits = np.array(splits or ["train"] * len(rows))
        self.pids = np.array([pid for pid, _, _ in rows])
        self.camids = np.array([camid for _, camid, _ in rows])
        self.parsing = np.zeros((len(rows), 8, 4), np.uint8)
        self.parsing[:, :4] = 13  # all face: nobody is taken for a back
        self.keypoints = np.stack([SIDES[side] for _, _, side in rows])

    def __len__(self) -> int:
        return len(self.pids)


def _pose(shoulders: float, nose: float) -> np.ndarray:
    """A torso of 100 pixels; the right shoulder this far from the left, the nose this far from the neck."""
    pose = np.full((18, 2), np.nan, np.float32)
    pose[0], pose[1] = (50 + nose, 0), (50, 20)
    pose[2], pose[5] = (50 + shoulders / 2, 20), (50 - shoulders / 2, 20)
    pose[8], pose[11] = (45, 120), (55, 120)
    return pose


SIDES = {
    "front": _pose(-90, 0),
    "back": _pose(90, 0),
    "right": _pose(-5, 20),
    "left": _pose(-5, -20),
    "unknown": np.full((18, 2), np.nan, np.float32),
}


def chosen(rows: list[tuple[int, int, str]], source: int, target: int, count: int) -> list[int]:
    further = FurtherSources(Planted(rows))  # type: ignore[arg-type]
    return further.choose(np.array([source]), np.array([target]), count)[0].tolist()


def test_first_the_own_camera_then_the_targets_side_then_a_new_side() -> None:
    rows = [
        (1, 1, "front"),  # 0 the source
        (1, 2, "back"),  # 1
        (1, 1, "left"),  # 2 own camera
        (1, 1, "front"),  # 3 own camera, nearer to the target's side
        (1, 3, "right"),  # 4 the target's side, another camera
        (1, 2, "front"),  # 5
        (2, 1, "right"),  # 6 the target, somebody else
    ]
    # camera 1: of left and front, front is nearer to right; then right itself; then, of the sides that no
    # source shows yet, back is nearer to right than left is; and so on until there are no more
    assert chosen(rows, 0, 6, 3) == [3, 4, 1]
    assert chosen(rows, 0, 6, 8) == [3, 4, 1, 2, 5, -1, -1, -1]


def test_images_of_the_targets_camera_are_no_sources_of_its_own_person() -> None:
    rows = [(1, 1, "front"), (1, 2, "left"), (1, 2, "left"), (1, 3, "left"), (2, 2, "left")]
    assert chosen(rows, 0, 1, 4) == [3, -1, -1, -1]
    assert set(chosen(rows, 0, 4, 4)) == {1, 2, 3, -1}  # another person's camera hides nothing


def test_nobody_elses_image_and_no_junk() -> None:
    rows = [(1, 1, "front"), (2, 1, "front"), (-1, 1, "front"), (0, 1, "front"), (0, 2, "left")]
    assert chosen(rows, 0, 1, 2) == [-1, -1]
    assert chosen(rows, 3, 1, 2) == [-1, -1]  # distractors are no person


def test_rows_may_be_restricted() -> None:
    rows = [(1, 1, "front"), (1, 1, "front"), (1, 2, "left"), (2, 1, "front")]
    further = FurtherSources(Planted(rows), np.array([0, 2, 3]))  # type: ignore[arg-type]
    assert further.choose(np.array([0]), np.array([3]), 2).tolist() == [[2, -1]]


def test_sources_may_be_kept_to_one_camera() -> None:
    rows = [(1, 1, "front"), (1, 1, "left"), (1, 2, "left"), (1, 1, "back"), (2, 2, "left")]
    planted = Planted(rows)
    further = FurtherSources(planted, cameras=planted.camids)  # type: ignore[arg-type]
    assert further.choose(np.array([0, 2]), np.array([4, 4]), 3).tolist() == [[1, 3, -1], [-1, -1, -1]]
    alone = FurtherSources(planted, cameras=np.arange(5))  # type: ignore[arg-type]
    assert alone.choose(np.array([0]), np.array([4]), 2).tolist() == [[-1, -1]]


@pytest.mark.parametrize("rows", [None, np.arange(6)])
@pytest.mark.parametrize(("source", "expected"), [(0, [1]), (1, [0]), (2, [3, 4]), (4, [2, 3])])
def test_training_images_go_with_training_images_alone(rows, source, expected) -> None:
    people = [(1, 1, "front")] * 5 + [(2, 1, "front")]  # one person of every split, and the target
    planted = Planted(people, ["train", "train", "query", "gallery", "val", "train"])
    further = FurtherSources(planted, rows)  # type: ignore[arg-type]
    chosen = further.choose(np.array([source]), np.array([5]), 4)[0].tolist()
    assert [row for row in chosen if row >= 0] == expected


def test_unknown_orientations_come_last_of_their_wish() -> None:
    rows = [(1, 1, "front"), (1, 1, "unknown"), (1, 1, "back"), (2, 1, "front")]
    assert chosen(rows, 0, 3, 1) == [2]


def test_counts_are_spread_evenly_and_follow_from_seed_and_step() -> None:
    counts = np.concatenate([draw_counts(32, 4, 7, step) for step in range(100)])
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert np.bincount(counts)[1:].min() > 0.2 * len(counts)
    np.testing.assert_array_equal(draw_counts(32, 4, 7, 5), draw_counts(32, 4, 7, 5))
    assert (draw_counts(8, 1, 0, 0) == 1).all()


@pytest.fixture
def pair_of_sources(people: PackedPeople):
    more = np.array([[2, 3], [4, -1], [-1, -1]])
    return people.pair_batch(np.array([0, 1, 2]), np.array([3, 4, 5]), more)


def test_packed_people_bring_further_sources(people: PackedPeople, pair_of_sources) -> None:
    more = pair_of_sources.more_sources
    assert more.known.tolist() == [[True, True], [True, False], [False, False]]
    np.testing.assert_array_equal(more.image[0, 1].permute(1, 2, 0).numpy(), people.images[3])
    np.testing.assert_array_equal(more.parsing[1, 0].numpy(), people.parsing[4])
    np.testing.assert_array_equal(more.mask[0, 0].numpy(), people.mask[2])
    np.testing.assert_array_equal(more.keypoints[0, 0].numpy(), people.keypoints[2])
    nobody = people.pair_batch(np.array([0]), np.array([1]), np.array([[-1, -1]]))
    assert nobody.more_sources is None
    assert more.first(1).known.shape == (3, 1)
    assert more.first(0) is None


def test_a_mirrored_pair_has_mirrored_further_sources(people: PackedPeople, pair_of_sources) -> None:
    flipped = flip_pairs(pair_of_sources, np.array([True, False, False])).more_sources
    as_source = flip_pairs(people.pair_batch(np.array([3]), np.array([3])), np.array([True]))
    torch.testing.assert_close(flipped.image[0, 1], as_source.source_image[0])
    torch.testing.assert_close(flipped.parsing[0, 1], as_source.source_parsing[0])
    torch.testing.assert_close(flipped.mask[0, 1], as_source.source_mask[0])
    torch.testing.assert_close(flipped.keypoints[0, 1], as_source.source_keypoints[0], equal_nan=True)
    torch.testing.assert_close(flipped.image[1], pair_of_sources.more_sources.image[1])
