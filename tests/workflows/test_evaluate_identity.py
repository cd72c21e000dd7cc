"""Identity kept: a perfect generator keeps it, one that paints everybody alike loses it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reposer.errors import UserError
from reposer.structures import PairBatch
from reposer.workflows.evaluate import OTHER_POSE, OWN_POSE, REAL, identity_kept


class Colors(torch.nn.Module):
    """An embedding that looks at the mean color."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image):
        return torch.nn.functional.normalize(image.float().mean((2, 3)) * self.scale, dim=1)


class People(SimpleNamespace):
    def pair_batch(self, source, target, more=None):
        n = len(source)
        self.asked = more
        image = lambda rows: torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2)  # noqa: E731
        labels, mask = torch.zeros(n, 8, 4, dtype=torch.uint8), torch.ones(n, 8, 4, dtype=torch.bool)
        known = getattr(self, "keypoints", np.zeros((len(self.pids), 18, 2), np.float32))
        joints = [torch.from_numpy(known[rows]) for rows in (source, target)]
        pids = torch.from_numpy(self.pids[source])
        return PairBatch(image(source), image(target), labels, labels, mask, mask, *joints, pids)


@pytest.fixture
def people():
    """Six people, each of one color, in three cameras: one query and two gallery images."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (6, 3))
    pids = np.repeat(np.arange(1, 7), 3)
    images = np.empty((18, 8, 4, 3), np.uint8)
    images[:] = colors[pids - 1][:, None, None]
    return People(
        images=images,
        pids=pids.astype(np.int64),
        camids=np.tile([1, 2, 3], 6).astype(np.int64),
        splits=np.tile(["query", "gallery", "gallery"], 6),
        clothes=np.full(18, -1, np.int64),
        names=tuple(f"{i}.jpg" for i in range(18)),
    )


def test_copying_keeps_everybody_and_gray_nobody(people):
    copy = identity_kept(lambda batch, _: batch.source_image, Colors(), people)
    assert {row: result.values.rank1 for row, result in copy.items()} == {
        REAL: 1.0,
        OWN_POSE: 1.0,
        OTHER_POSE: 1.0,
    }
    gray = identity_kept(lambda batch, _: torch.full_like(batch.source_image, 128), Colors(), people)
    assert gray[REAL].values.rank1 == 1.0
    assert gray[OWN_POSE].values.rank1 < 0.5


def test_donors_are_whom_the_row_says(people):
    """A generator that paints the donor is recognized with the own pose only."""
    donor = identity_kept(lambda batch, _: batch.target_image, Colors(), people)
    assert donor[OWN_POSE].values.rank1 == 1.0
    assert donor[OTHER_POSE].values.rank1 == 0.0


def test_no_picture_is_found_by_what_it_was_made_of(people):
    """Further sources are of the query's camera; in the donor's scene the person does not count there."""
    people.images = np.repeat(people.images, 2, axis=0)
    for name in ("pids", "camids", "splits", "clothes"):
        setattr(people, name, np.repeat(getattr(people, name), 2))
    people.splits[1::6] = "gallery"  # each query has a neighbor in its own camera
    people.names = tuple(f"{i}.jpg" for i in range(36))
    people.keypoints = np.zeros((36, 18, 2), np.float32)
    people.parsing = np.zeros((36, 8, 4), np.uint8)
    seen = []

    def copy(batch, background):
        seen.append(people.asked)
        return batch.source_image

    results = identity_kept(copy, Colors(), people, sources=4)
    assert results[REAL].counts["valid_matches"] == results[OTHER_POSE].counts["valid_matches"] == 6 * 4
    query = np.flatnonzero(people.splits == "query")
    own, other = seen
    np.testing.assert_array_equal(other[:, 0], query + 1)  # the neighbor, and nobody else
    assert (other[:, 1:] == -1).all()
    assert set(own[:, 0].tolist()) <= {-1, *(query + 1).tolist()}
    scene = identity_kept(copy, Colors(), people, background="donor")
    assert scene[OWN_POSE].counts["valid_matches"] < 6 * 4  # 2 fewer where the donor's camera is another
    donors = np.array([row for row, camera in enumerate(people.camids) if camera == 2])
    people.keypoints[:] = np.nan
    people.keypoints[donors] = 0.0
    kept = identity_kept(PoseOnly(), Colors(), people, background="donor")
    assert kept[OWN_POSE].counts["valid_matches"] == kept[OTHER_POSE].counts["valid_matches"] == 6 * 2
    people.camids[:] = 1  # no camera tells images apart: each is one of its own
    identity_kept(copy, Colors(), people, sources=4)
    assert (seen[-1] == -1).all()


def test_a_query_that_nobody_of_its_person_lends_a_pose_is_left_out(people):
    people.keypoints = np.zeros((18, 18, 2), np.float32)
    people.keypoints[:3] = np.nan  # the first person's
    results = identity_kept(PoseOnly(), Colors(), people)
    assert results[OWN_POSE].counts["queries"] == 5
    assert results[OWN_POSE].values.rank1 == 1.0
    assert results[OTHER_POSE].counts["queries"] == 6


def test_held_out_people_give_one_query_a_camera(people):
    people.splits = np.full(18, "val")
    people.camids = np.tile([1, 1, 2], 6).astype(np.int64)
    results = identity_kept(lambda batch, _: batch.source_image, Colors(), people)
    assert results[REAL].counts["queries"] == 12


def test_nobody_to_test_on(people):
    people.splits = np.full(18, "train")
    with pytest.raises(UserError, match="nobody"):
        identity_kept(lambda batch, _: batch.source_image, Colors(), people)


class PoseOnly:
    """Takes predicted maps: refuses donors without keypoints, and paints the donor."""

    maps = "predicted"

    def __call__(self, batch, _):
        assert torch.isfinite(batch.target_keypoints).all(2).any(1).all()
        return batch.target_image


def test_nobody_lends_a_pose_that_nobody_knows(people):
    """With predicted maps, images without keypoints are no donors; a person's own others still are."""
    people.keypoints = np.zeros((18, 18, 2), np.float32)
    people.keypoints[1::3] = np.nan
    results = identity_kept(PoseOnly(), Colors(), people)
    assert results[OWN_POSE].values.rank1 == 1.0
    people.keypoints[:] = np.nan
    with pytest.raises(UserError, match="keypoints"):
        identity_kept(PoseOnly(), Colors(), people)
