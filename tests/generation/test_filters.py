"""Filters against distances, variances and overlaps worked out one picture at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import Planted, pack_planted
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter, laplace

from reposer.config import stored_hash
from reposer.data.packed import PackedPeople
from reposer.data.parsing import LIP_LABELS
from reposer.errors import UserError
from reposer.generation.filters import FilterOptions, PictureFilter, filter_options
from reposer.generation.picture_scores import pose_agreement, sharpness
from reposer.storage import checkpoint
from reposer.structures import MISSING_LABEL
from reposer.trained.networks import EMBEDDING, of_run
from reposer.training.loop import train
from reposer.training.reid.config import (
    AugmentConfig,
    EmbeddingConfig,
    ReidConfig,
    ReidDataConfig,
    ReidOptimizerConfig,
    ReidScheduleConfig,
)

PEOPLE = [Planted(pid=1 + i // 4, camid=1 + i % 4) for i in range(24)]
PEOPLE += [Planted(pid=7), Planted(pid=90, split="val"), Planted(pid=90, camid=2, split="val")]
TRAINING = np.arange(25)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedPeople:
    """Six people with four images, one with one, and one of split val."""
    return pack_planted(tmp_path_factory.mktemp("prepared"), PEOPLE)


@pytest.fixture(scope="module")
def run(packed: PackedPeople, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Re-ID training of a few steps on them."""
    config = ReidConfig(
        data=ReidDataConfig(folder=packed.folder.parent, images_per_epoch=24),
        augment=AugmentConfig(resize=(32, 16), crop=(32, 16)),
        embedding=EmbeddingConfig(backbone="small", backbone_args={"widths": [8, 8, 16]}, size=(32, 16)),
        optimizer=ReidOptimizerConfig(lr=5e-3),
        schedule=ReidScheduleConfig(epochs=60),
        batch_size=12,
        threads=1,
    )
    folder = tmp_path_factory.mktemp("runs") / "reid"
    train(config, folder, device="cpu")
    return folder


def _slow_identity(packed: PackedPeople, run: Path, picture: torch.Tensor, source: int) -> float:
    """Nearest real image of the source's person, one at a time."""
    embedding = of_run(EMBEDDING, run).network
    with torch.no_grad():
        mine = embedding(picture[None])
        others = [i for i in TRAINING if packed.pids[i] == packed.pids[source] and i != source]
        features = (embedding(packed.pair_batch([i], [i]).source_image) for i in others)
        return min((float((mine - feature).norm()) for feature in features), default=np.nan)


def test_identity_is_the_nearest_other_image_of_the_person(packed, run):
    judge = PictureFilter.fit(
        packed, TRAINING, FilterOptions(identity=True, identity_quantile=0.9), reid_run=run
    )
    images = packed.pair_batch(TRAINING, TRAINING).source_image
    real = [_slow_identity(packed, run, image, i) for i, image in enumerate(images)]
    assert np.isnan(real[24])  # one image: nobody to compare with
    assert judge.thresholds == {"identity_distance": pytest.approx(np.nanquantile(real, 0.9), abs=1e-4)}
    sources, donors = np.array([0, 1, 4, 24]), np.array([4, 0, 8, 0])
    pictures = images[[2, 20, 5, 24]]  # the right person, another one, the right one, one with one image
    batch = packed.pair_batch(sources, donors)
    scores = judge.score(pictures, batch, sources)
    expected = [_slow_identity(packed, run, p, s) for p, s in zip(pictures, sources.tolist(), strict=True)]
    np.testing.assert_allclose(scores["identity_distance"], expected, atol=1e-4)
    assert judge.decide(scores) == [None, "identity", None, "identity"]
    nine_tenths = judge.decide({"identity_distance": np.array(real[:24])})
    assert sum(reason is None for reason in nine_tenths) in (21, 22)
    described = json.loads(json.dumps(judge.describe()))
    assert described["thresholds"] == judge.thresholds
    assert described["real_images"] == 25
    assert described["embedding"]["identity_hash"] == packed.identity_hash("train")


def test_a_margin_is_how_much_nearer_the_own_person_is(packed, run):
    """By hand, one picture at a time; a picture at the limit passes, one that nothing is known of falls."""
    judge = PictureFilter.fit(packed, TRAINING, FilterOptions(margin=True, margin_quantile=0.2), reid_run=run)
    images = packed.pair_batch(TRAINING, TRAINING).source_image
    embedding = of_run(EMBEDDING, run).network
    with torch.no_grad():
        features = embedding(images)

    def margin(feature: torch.Tensor, source: int) -> float:
        gaps = {i: float((feature - features[i]).norm()) for i in TRAINING.tolist() if i != source}
        own = [gap for i, gap in gaps.items() if packed.pids[i] == packed.pids[source]]
        others = [gap for i, gap in gaps.items() if packed.pids[i] != packed.pids[source]]
        return min(others) - min(own) if own else np.nan

    real = np.array([margin(feature, i) for i, feature in enumerate(features)])
    limit = np.nanquantile(real, 0.2)
    assert judge.thresholds == {"identity_margin": pytest.approx(limit, abs=1e-4)}
    sources = np.array([0, 1, 4, 24])
    pictures = images[[2, 20, 5, 24]]
    scores = judge.score(pictures, packed.pair_batch(sources, sources), sources)
    expected = [margin(features[i], s) for i, s in zip([2, 20, 5, 24], sources.tolist(), strict=True)]
    np.testing.assert_allclose(scores["identity_margin"], expected, atol=1e-4)
    assert expected[1] < 0  # the picture shows somebody else
    assert judge.decide(scores)[1::2] == ["margin", "margin"]  # another person; one whose image is the only
    verdicts = judge.decide({"identity_margin": real[:24]})
    assert sum(reason is None for reason in verdicts) in (19, 20)
    both = PictureFilter.fit(packed, TRAINING, FilterOptions(identity=True, margin=True), reid_run=run)
    assert set(both.thresholds) == {"identity_distance", "identity_margin"}
    assert filter_options(["margin", "margin_quantile=0.1"]) == FilterOptions(
        margin=True, margin_quantile=0.1
    )


def test_the_filter_sees_its_rows_only(packed, run):
    few = np.array([0, 1, 4, 5, 8, 9])
    judge = PictureFilter.fit(packed, few, FilterOptions(identity=True), reid_run=run)
    source = np.array([0])
    picture = packed.pair_batch(source, source).source_image
    found = judge.score(picture, packed.pair_batch(source, source), source)["identity_distance"]
    embedding = of_run(EMBEDDING, run).network
    with torch.no_grad():
        a, b = embedding(packed.pair_batch([0, 1], [0, 1]).source_image)
    assert found[0] == pytest.approx(float((a - b).norm()), abs=1e-4)  # images 2 and 3 would be others


def test_sharpness_equals_scipy_on_the_inside_of_the_person():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 20, 12, 3), dtype=np.uint8)
    masks = np.zeros((3, 20, 12), np.bool_)
    masks[0, 3:17, 2:10] = masks[1, :, :] = masks[2, 5:9, 5:9] = True
    found = sharpness(torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.from_numpy(masks))
    for i in range(2):
        gray = pictures[i].astype(float) @ [0.299, 0.587, 0.114]
        inside = np.zeros((20, 12), np.bool_)
        for y in range(1, 19):
            for x in range(1, 11):
                inside[y, x] = all(
                    masks[i, y + dy, x + dx] for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
                )
        assert found[i] == pytest.approx(laplace(gray)[inside].var(), rel=1e-9)
    assert np.isnan(found[2])  # four pixels say nothing


def test_blurred_pictures_fall_and_the_background_does_not_matter(packed):
    judge = PictureFilter.fit(packed, TRAINING, FilterOptions(sharpness=True, sharpness_quantile=0.1))
    rows = np.arange(8)
    batch = packed.pair_batch(rows, rows)
    sharp = batch.source_image
    blurred = torch.from_numpy(gaussian_filter(sharp.numpy(), (0, 0, 1, 1)))
    noisy = torch.where(batch.target_mask[:, None], blurred, sharp)  # only the person is blurred
    real = judge.score(
        packed.pair_batch(TRAINING, TRAINING).source_image,
        packed.pair_batch(TRAINING, TRAINING),
        TRAINING,
    )
    assert judge.thresholds["sharpness"] == pytest.approx(np.quantile(real["sharpness"], 0.1))
    assert judge.decide(judge.score(noisy, batch, rows)) == ["sharpness"] * 8
    kept = judge.decide(real)
    assert sum(reason is None for reason in kept) == 22


def test_pose_agreement_by_hand():
    upper, pants, face = (LIP_LABELS.index(name) for name in ("upper-clothes", "pants", "face"))
    wanted = np.zeros((4, 4, 4), np.uint8)
    wanted[:3, :2] = upper
    wanted[:3, 2:] = pants
    predicted = wanted.copy()
    predicted[1, 1] = pants  # upper 4 of 8; pants 8 of 12
    predicted[2, 0, 0] = face  # upper 7 of 8, pants 8 of 8, face 0 of 1
    wanted[3] = MISSING_LABEL
    found = pose_agreement(predicted, wanted)
    np.testing.assert_allclose(found[:3], [1, (4 / 8 + 8 / 12) / 2, (7 / 8 + 1 + 0) / 3])
    assert np.isnan(found[3])
    np.testing.assert_allclose(pose_agreement(predicted, wanted, "mask")[:3], 1)
    wanted[0, 0, 0] = MISSING_LABEL  # not compared: the rest still agrees
    assert pose_agreement(predicted, wanted)[0] == 1


def test_a_parser_judges_the_pose(packed):
    maps = {packed.images[i].tobytes(): packed.parsing[i] for i in TRAINING}
    upper_half = packed.parsing[0] * (np.arange(64) < 32)[:, None]

    def parser(images: torch.Tensor) -> torch.Tensor:
        """Knows the real pictures, and half a person in every other one."""
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(
            np.stack([maps.get(p.tobytes(), upper_half) for p in pixels]).astype(np.uint8)
        )

    options = FilterOptions(pose="merged8", sharpness=True)
    judge = PictureFilter.fit(packed, TRAINING, options, parser=parser)
    assert judge.thresholds["pose_agreement"] == 1
    rows, donors = np.array([0, 4]), np.array([8, 8])
    pictures = packed.pair_batch(np.array([8, 8]), donors).source_image.clone()
    pictures[1] = 90
    scores = judge.score(pictures, packed.pair_batch(rows, donors), rows)
    assert scores["pose_agreement"][0] == 1
    assert scores["pose_agreement"][1] < 0.8
    assert judge.decide(scores) == [None, "pose+sharpness"]


def test_filters_are_chosen_by_text():
    assert filter_options([]) is None
    assert filter_options(["pose", "sharpness"]) == FilterOptions(pose="merged8", sharpness=True)
    chosen = filter_options(["pose=mask", "identity", "identity_quantile=0.9"])
    assert chosen == FilterOptions(pose="mask", identity=True, identity_quantile=0.9)
    for text, words in {
        "sharpnes": "--filter sharpnes=true: unknown key sharpnes: did you mean sharpness",
        "identity_quantile=0.9": "no filter is chosen: name identity, pose, sharpness",
        "pose=face": "pose: .* 'merged8' or 'mask'",
    }.items():
        with pytest.raises(UserError, match=words):
            filter_options([text])
    for name in ("identity", "pose", "margin"):
        with pytest.raises(
            UserError, match=f"the filter {name} is not chosen: add --filter {name}, or leave"
        ):
            filter_options(["sharpness", f" {name}_quantile =0.3"])
        off = "null" if name == "pose" else "false"
        with pytest.raises(UserError, match=f"the filter {name} is not chosen"):
            filter_options(["sharpness", f"{name}_quantile=0.3", f"{name}={off}"])


def test_refusals(packed, run, tmp_path):
    with pytest.raises(ValidationError, match="no filter is chosen"):
        FilterOptions()
    sharp = FilterOptions(sharpness=True)
    with pytest.raises(UserError, match="row 25 is of split val: thresholds are taken"):
        PictureFilter.fit(packed, np.array([0, 25]), sharp)
    with pytest.raises(UserError, match="filter pose: needs a parser"):
        PictureFilter.fit(packed, TRAINING, FilterOptions(pose="mask"))
    with pytest.raises(
        UserError, match="a Re-ID run is named, and no filter looks at it: choose the filter identity"
    ):
        PictureFilter.fit(packed, TRAINING, sharp, reid_run=run)
    alone = np.array([0, 4, 8])
    with pytest.raises(UserError, match="filter identity: no real training image tells what is usual"):
        PictureFilter.fit(packed, alone, FilterOptions(identity=True), reid_run=run)
    others = pack_planted(tmp_path, [Planted(pid=1 + i // 2) for i in range(18)])
    with pytest.raises(UserError, match=r"was not trained on the training people .*\(pid 8 differs\)"):
        PictureFilter.fit(others, np.arange(16), FilterOptions(identity=True), reid_run=run)


def test_an_embedding_that_saw_generated_images_is_refused(packed, run, tmp_path):
    """First a run whose configuration was only rewritten, then one whose checkpoint agrees with it."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    settings["generated"]["folder"] = "augmented"
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is of another run or configuration"):
        PictureFilter.fit(packed, TRAINING, FilterOptions(identity=True), reid_run=other)
    found = checkpoint.load(checkpoint.steps(other / "checkpoints")[0][1])
    meta = found.meta | {"config_hash": stored_hash(other / "config.json")}
    checkpoint.save(other / "checkpoints", found.step, found.groups, meta)
    with pytest.raises(UserError, match="was trained on generated images"):
        PictureFilter.fit(packed, TRAINING, FilterOptions(identity=True), reid_run=other)
