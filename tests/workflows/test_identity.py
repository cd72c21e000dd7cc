"""Identity kept: a perfect generator keeps it, one that paints everybody alike loses it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import Planted, pack_planted

from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.targets import canonical_pose
from reposer.models.embedding import EmbeddingInfo
from reposer.models.generators import build_predictor
from reposer.structures import PairBatch
from reposer.trained.networks import GeneratorConfig
from reposer.workflows.identity import (
    ALIKE,
    OTHER_POSE,
    OWN_POSE,
    REAL,
    TURNED,
    identity_kept,
    write_identity,
)


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
        joints = [torch.from_numpy(self.keypoints[rows]) for rows in (source, target)]
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
        keypoints=np.full((18, 18, 2), np.nan, np.float32),
        parsing=np.zeros((18, 8, 4), np.uint8),
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


def test_own_poses_are_told_apart_by_the_way_that_they_face(people, tmp_path):
    """This generator paints in gray whom it is to turn; half of the people are seen from one side alone."""
    front, diagonal, back = (canonical_pose(name) for name in ("front", "front-left", "back"))
    people.keypoints = np.stack([front, diagonal, front] * 3 + [front, back, back] * 3)

    def model(batch, _):
        return torch.where(batch.pids.reshape(-1, 1, 1, 1) > 3, 128, batch.source_image)

    results = identity_kept(model, Colors(), people)
    assert results[OWN_POSE + ALIKE].values.rank1 == 1.0
    assert results[OWN_POSE + ALIKE].counts["queries"] == results[OWN_POSE + TURNED].counts["queries"] == 3
    assert results[OWN_POSE + TURNED].values.rank1 <= 1 / 3 < results[OWN_POSE].values.rank1 < 1
    assert not any(row.startswith(OTHER_POSE + ",") for row in results)
    text = write_identity(tmp_path, results, EmbeddingInfo(embedding={"backbone": "small"}))
    assert f"| {OWN_POSE}{ALIKE} | 100.0% | 100.0% | 100.0% |" in text


def test_a_share_is_that_of_the_same_queries(people, tmp_path):
    """Half of the real queries are not found; the generated ones of the others are: no more than all."""
    people.keypoints = np.stack([canonical_pose("front")] * 9 + [np.full((18, 2), np.nan)] * 9).astype(
        np.float32
    )
    lost = np.flatnonzero((people.splits == "query") & (people.pids > 3))
    people.images[lost] = people.images[0]  # taken for the first person
    results = identity_kept(lambda batch, _: batch.source_image, Colors(), people)
    assert results[REAL].values.rank1 == 0.5
    write_identity(tmp_path, results, EmbeddingInfo(embedding={"backbone": "small"}))
    rows = json.loads((tmp_path / "identity.json").read_text())["rows"]
    assert rows[OWN_POSE]["real_rank1"] == 0.5
    assert rows[OWN_POSE + ALIKE]["rank1"] == rows[OWN_POSE + ALIKE]["real_rank1"] == 1.0


def test_a_share_in_the_donors_scene_leaves_out_who_is_found_nowhere_else(people, tmp_path):
    """Without the images of the donor's camera some are to be found nowhere: neither row counts them."""
    kept = np.ones(18, np.bool_)
    kept[[11, 14, 17]] = False  # persons 4 to 6 have one gallery image, in the camera of whom they are given
    for name in ("images", "pids", "camids", "splits", "clothes", "keypoints", "parsing"):
        setattr(people, name, getattr(people, name)[kept])
    people.names = tuple(f"{i}.jpg" for i in range(15))
    people.images[np.flatnonzero((people.splits == "query") & (people.pids > 3))] = people.images[0]
    results = identity_kept(lambda batch, _: batch.source_image, Colors(), people, background="donor")
    counts = results[OWN_POSE].counts
    assert counts["queries_with_valid_match"] < counts["queries"]
    assert results[OWN_POSE].values.rank1 == 1.0
    write_identity(tmp_path, results, EmbeddingInfo(embedding={"backbone": "small"}))
    rows = json.loads((tmp_path / "identity.json").read_text())["rows"]
    assert rows[OWN_POSE]["real_rank1"] == 1.0
    assert rows[REAL]["real_rank1"] == rows[REAL]["rank1"] == 0.5


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


class Watched:
    """A model that copies the source, and keeps which images it was asked for."""

    def __init__(self, *reads: str, predictor: object = None, maps: str = "given") -> None:
        self.reads, self.predictor, self.maps = reads, predictor, maps
        self.batches: list[PairBatch] = []

    def needs(self, background: str = "generated") -> tuple[str, ...]:
        return self.reads if background == "generated" else (*self.reads, "target_mask")

    def __call__(self, batch: PairBatch, background: str) -> torch.Tensor:
        self.batches.append(batch)
        return batch.source_image


@pytest.mark.parametrize("nobody", [-1, 0])
def test_distractors_and_junk_lend_no_pose(people, nobody):
    """Two people, and a gallery that is nearly all nobody's: the other one alone is another person."""
    people.pids[6:] = nobody
    people.splits[6:] = "gallery"
    people.keypoints = np.arange(18, dtype=np.float32)[:, None, None] * np.ones((1, 18, 2), np.float32)
    for seed in range(20):
        model = Watched()
        identity_kept(model, Colors(), people, seed=seed)
        own, other = (batch.target_keypoints[:, 0, 0].int().tolist() for batch in model.batches)
        assert set(people.pids[own]) == set(people.pids[other]) == {1, 2}
        assert people.pids[own].tolist() == [1, 2]
        assert people.pids[other].tolist() == [2, 1]


def _of_five(folder, without) -> PackedPeople:
    """Five people, a query and two gallery images each; ``without``: (person, camera) that have no map."""
    return pack_planted(
        folder,
        [
            Planted(
                pid=pid,
                camid=camera,
                split="query" if camera == 1 else "gallery",
                parsing=(pid, camera) not in without,
            )
            for pid in range(1, 6)
            for camera in (1, 2, 3)
        ],
    )


@pytest.mark.parametrize(
    ("without", "queries"),
    [
        ({(3, 2)}, 5),
        ({(3, 2), (4, 2), (5, 2), (1, 3)}, 5),
        ({(3, 1)}, 4),
        ({(3, 1), (3, 2), (3, 3), (4, 1)}, 3),
    ],
)
def test_an_image_without_a_label_map_is_neither_query_nor_lender(tmp_path, without, queries):
    """As in augmented sets and lists of pairs; what is left out is counted and said."""
    people = _of_five(tmp_path, without)
    model = PoseTransfer.from_pretrained("transport").at_size(people.size)
    for seed in range(5):
        results = identity_kept(model, Colors(), people, seed=seed, sources=2)
    assert results[REAL].counts["queries"] == 5
    missing = {"lenders_without_map": len(without)}
    missing |= {"queries_without_map": 5 - queries} if queries < 5 else {}
    for row in (OWN_POSE, OTHER_POSE):
        counts = results[row].counts
        assert counts["queries"] == queries
        assert {name: count for name, count in counts.items() if name.endswith("_map")} == missing
    table = write_identity(tmp_path, results, EmbeddingInfo(embedding={"backbone": "small"}))
    said = f"without a label map, left out: {5 - queries} queries, {len(without)} lenders."
    assert [line for line in table.split("\n") if "label map" in line] == [
        f"{OWN_POSE}: {said}",
        f"{OTHER_POSE}: {said}",
    ]


def test_whoever_has_all_maps_gets_no_further_count(tmp_path):
    people = _of_five(tmp_path, ())
    model = PoseTransfer.from_pretrained("transport").at_size(people.size)
    results = identity_kept(model, Colors(), people)
    assert {frozenset(result.counts) for result in results.values()} == {frozenset(results[REAL].counts)}
    assert "label map" not in write_identity(
        tmp_path, results, EmbeddingInfo(embedding={"backbone": "small"})
    )


@pytest.mark.parametrize("sources", [1, 2, 4])
def test_what_is_written_says_of_how_many_sources_it_is(tmp_path, sources):
    people = _of_five(tmp_path, ())
    model = PoseTransfer.from_pretrained("transport").at_size(people.size)
    results = identity_kept(model, Colors(), people, sources=sources)
    said = write_identity(tmp_path, results, EmbeddingInfo(embedding={"backbone": "small"}), sources)
    assert (f"up to {sources} images" in said) == (sources > 1)
    assert json.loads((tmp_path / "identity.json").read_text()).get("sources", 1) == sources


def test_maps_that_nobody_reads_are_not_asked_for(tmp_path):
    """Without maps a model of keypoints takes everybody; a predictor makes a lender's map, no query's."""
    people = _of_five(tmp_path, {(1, 1), (2, 2), (3, 3)})

    def asked(model, background="generated"):
        results = identity_kept(model, Colors(), people, background=background)
        return results[OWN_POSE].counts["queries"], results[OTHER_POSE].counts.get("lenders_without_map", 0)

    assert asked(Watched("source_image", "target_keypoints")) == (5, 0)
    assert asked(Watched("source_image", "target_mask")) == (5, 3)
    assert asked(Watched("source_image", "source_mask")) == (4, 0)
    assert asked(Watched("source_image"), "source") == (5, 3)
    assert asked(Watched("target_parsing", predictor=object())) == (4, 0)
    assert asked(Watched("target_parsing", predictor=object(), maps="predicted")) == (4, 0)
    assert asked(Watched("target_parsing", predictor=object()), "donor") == (4, 3)


def test_where_all_maps_are_missing_the_model_says_so(tmp_path):
    everybody = {(pid, camera) for pid in range(1, 6) for camera in (1, 2, 3)}
    people = _of_five(tmp_path / "none", everybody)
    model = PoseTransfer.from_pretrained("transport").at_size(people.size)
    with pytest.raises(UserError, match=r"5 of 5 targets have no parsing map and mask, .*--predictor"):
        identity_kept(model, Colors(), people)
    queries = {(pid, 1) for pid in range(1, 6)}
    with pytest.raises(UserError, match="own pose: no query with a label map is lent a pose"):
        identity_kept(model, Colors(), _of_five(tmp_path / "queries", queries))


@pytest.mark.parametrize("size", [(128, 64), (64, 64)])
def test_a_predictor_of_another_size_than_the_people_is_refused(tmp_path, size):
    people = _of_five(tmp_path, ())
    info = GeneratorConfig(generator="parsing_predictor", size=size)
    predictor = MapPredictor(build_predictor("parsing_predictor", width=4), info)
    model = PoseTransfer.from_pretrained("transport").at_size(people.size)
    with pytest.raises(UserError, match="the predictor works at"):
        identity_kept(model, Colors(), people, predictor=predictor)
