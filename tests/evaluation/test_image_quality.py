"""The evaluation from end to end on a small packed data set: rows, baselines, floors, intervals, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.evaluation.image_quality import COPY, NEAREST, evaluate_images, evaluate_pairs, nearest_poses
from reposer.evaluation.image_sets import MetricResult, mean_of
from reposer.evaluation.measurement import FLOOR
from reposer.metrics import set_scores, similarity
from reposer.metrics.intervals import mean_interval
from reposer.metrics.set_scores import FeatureStatistics, frechet_distance
from reposer.structures import PairBatch

PIXELS = ["ssim", "mask_ssim", "psnr", "l1", "mask_l1"]


def _pairs(people: PackedPeople) -> np.ndarray:
    """All ordered pairs of each held-out person: 80."""
    val = np.flatnonzero(people.splits == "val")
    return np.array([(a, b) for a in val for b in val if a != b and people.pids[a] == people.pids[b]])


def _training(people: PackedPeople) -> np.ndarray:
    return np.flatnonzero(people.splits == "train")


def _perfect(batch: PairBatch) -> torch.Tensor:
    return batch.target_image


def _half(batch: PairBatch) -> torch.Tensor:
    return (batch.source_image.int() + batch.target_image).div(2, rounding_mode="floor").to(torch.uint8)


def _images(people: PackedPeople, indices: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(people.images[indices]).permute(0, 3, 1, 2)


def test_rows_equal_the_functions_on_all_images_at_once(people: PackedPeople) -> None:
    pairs = _pairs(people)
    report = evaluate_pairs({"half": _half, "perfect": _perfect}, people, pairs, PIXELS, batch_size=7)
    assert list(report.rows) == ["half", "perfect", COPY]
    source, target = _images(people, pairs[:, 0]), _images(people, pairs[:, 1])
    mask = torch.from_numpy(people.mask[pairs[:, 1]])
    copies = report.rows[COPY]
    expected = similarity.mask_l1(source, target, mask)
    assert copies["mask_l1"].value == pytest.approx(expected.mean(), rel=1e-12)
    assert copies["ssim"].value == pytest.approx(similarity.ssim(source, target).mean(), rel=1e-12)
    low, high = mean_interval(expected, people.pids[pairs[:, 1]])
    assert (copies["mask_l1"].low, copies["mask_l1"].high) == pytest.approx((low, high))
    assert low < copies["mask_l1"].value < high
    assert copies["mask_l1"].count == 80
    assert report.rows["half"]["l1"].value == pytest.approx(copies["l1"].value / 2, rel=0.02)
    perfect = report.rows["perfect"]
    assert (perfect["l1"].value, perfect["mask_ssim"].value) == (0.0, 1.0)
    assert perfect["psnr"].value is None  # infinite for each: counted, not averaged
    assert perfect["psnr"].left_out == 80


def test_each_row_says_how_far_it_is(people: PackedPeople) -> None:
    told: list[tuple[str, int, int]] = []
    pairs = _pairs(people)[:20]
    evaluate_pairs(
        {"half": _half}, people, pairs, ["l1"], batch_size=8, on_progress=lambda *one: told.append(one)
    )
    assert told == [(row, done, 20) for row in ("half", COPY) for done in (8, 16, 20)]


def test_nearest_pose_is_another_training_person(people: PackedPeople) -> None:
    pairs, training = _pairs(people), _training(people)
    report = evaluate_pairs({}, people, pairs, ["l1"], training=training)
    nearest = nearest_poses(
        people.keypoints[pairs[:, 1]],
        people.pids[pairs[:, 1]],
        people.keypoints[training],
        people.pids[training],
        [people.names[i] for i in training],
    )
    usable = nearest >= 0
    assert usable.sum() == 76  # one held-out picture has no keypoints; 4 pairs lead to it
    donors, target = training[nearest[usable]], pairs[usable, 1]
    expected = similarity.l1(_images(people, donors), _images(people, target)).mean()
    cell = report.rows[NEAREST]["l1"]
    assert (cell.value, cell.count) == (pytest.approx(expected, rel=1e-12), 76)


@pytest.mark.parametrize(
    "batch_size", [13, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 80))]
)
def test_nothing_depends_on_the_batch_size(
    batch_size: int, people: PackedPeople, tiny: dict[str, Path], tmp_path: Path
) -> None:
    names = [*PIXELS, "frechet_tiny", "frechet_tiny_gfla", "kid_tiny", "is_tiny", "mask_is_tiny"]

    def run(size: int) -> tuple[dict, list]:
        report = evaluate_pairs(
            *({"half": _half}, people, _pairs(people), names),
            training=_training(people),
            weights=tiny,
            batch_size=size,
        )
        return report.to_dict()["rows"], report.per_image.to_pylist()

    (rows, per_image), (expected, expected_images) = run(batch_size), run(32)
    assert per_image == expected_images
    for method, cells in expected.items():
        for name, cell in cells.items():
            for key in ("value", "low", "high"):
                found, number = rows[method][name][key], cell[key]
                assert found == (None if number is None else pytest.approx(number, rel=1e-5))  # float32
            assert rows[method][name]["note"] == cell["note"]


def _distance(network: nn.Module, a: torch.Tensor, b: torch.Tensor) -> float:
    sets = [FeatureStatistics(7) for _ in range(2)]
    for statistics, images in zip(sets, (a, b), strict=True):
        statistics.update(network(images).numpy())
    return frechet_distance(*sets)


def test_frechet_reference_floor_and_dropped_batch(
    people: PackedPeople, tiny: dict[str, Path], tiny_network: nn.Module
) -> None:
    pairs, training = _pairs(people)[:75], _training(people)
    report = evaluate_pairs(
        *({"half": _half}, people, pairs, ["frechet_tiny", "frechet_tiny_gfla"]),
        training=training,
        weights=tiny,
    )
    source, reference = _images(people, pairs[:, 0]), _images(people, training)  # 75 and 20 images
    copies, floor = report.rows[COPY], report.rows[FLOOR]
    assert copies["frechet_tiny"].value == pytest.approx(_distance(tiny_network, source, reference), rel=1e-5)
    dropped = _distance(tiny_network, source[:72], reference[:16])
    assert copies["frechet_tiny_gfla"].value == pytest.approx(dropped, rel=1e-5)
    assert (copies["frechet_tiny"].count, copies["frechet_tiny_gfla"].count) == (75, 72)
    distinct = np.unique(pairs[:, 1])
    expected = _distance(tiny_network, _images(people, distinct), reference)
    assert floor["frechet_tiny"].value == pytest.approx(expected, rel=1e-5)
    assert "the distinct target images (20)" in floor["frechet_tiny"].note
    assert report.metrics["frechet_tiny"].reference == "all training images (20)"
    assert "small sample, 75 against 20 images" in copies["frechet_tiny"].note
    assert copies["frechet_tiny"].low < copies["frechet_tiny"].value < copies["frechet_tiny"].high


def test_without_training_images_the_reference_is_the_targets(
    people: PackedPeople, tiny: dict[str, Path], tiny_network: nn.Module
) -> None:
    pairs = _pairs(people)
    report = evaluate_pairs({}, people, pairs, ["frechet_tiny", "frechet_tiny_gfla"], weights=tiny)
    assert NEAREST not in report.rows
    targets = _images(people, np.unique(pairs[:, 1]))
    expected = _distance(tiny_network, _images(people, pairs[:, 0]), targets)
    assert report.rows[COPY]["frechet_tiny"].value == pytest.approx(expected, rel=1e-5)
    assert "two random halves of the distinct target images (20)" in report.rows[FLOOR]["frechet_tiny"].note
    cell = report.rows[COPY]["frechet_tiny_gfla"]
    assert cell.value is None
    assert cell.note.startswith("not measured: its protocol compares with the whole training set")


def test_a_collapsed_generator_is_named(people: PackedPeople, tiny: dict[str, Path]) -> None:
    def constant(batch: PairBatch) -> torch.Tensor:
        return torch.full_like(batch.target_image, 90)

    report = evaluate_pairs({"constant": constant}, people, _pairs(people), ["frechet_tiny"], weights=tiny)
    assert "collapsed" in report.rows["constant"]["frechet_tiny"].note
    assert "collapsed" not in report.rows[COPY]["frechet_tiny"].note


def test_cached_statistics_follow_the_content(
    people: PackedPeople, tiny: dict[str, Path], tmp_path: Path
) -> None:
    def value(pairs: np.ndarray) -> float | None:
        report = evaluate_pairs(
            {}, people, pairs, ["frechet_tiny"], weights=tiny, reference="targets", cache=tmp_path / "cache"
        )
        return report.rows[COPY]["frechet_tiny"].value

    pairs = _pairs(people)
    first = value(pairs)
    (file,) = (tmp_path / "cache").iterdir()
    time = file.stat().st_mtime_ns
    assert value(pairs) == first
    assert file.stat().st_mtime_ns == time  # read, not written again
    other = value(pairs[:40])
    assert other != first
    assert len(list((tmp_path / "cache").iterdir())) == 2
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert value(pairs) == first  # a damaged file is not believed


def test_missing_weights_are_reported_and_the_rest_is_measured(
    people: PackedPeople, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("REPOSER_WEIGHTS", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    report = evaluate_pairs({}, people, _pairs(people), ["l1", "mask_lpips", "fid"])
    cells = report.rows[COPY]
    assert cells["l1"].value is not None
    assert cells["mask_lpips"].value is cells["fid"].value is None
    assert cells["mask_lpips"].note.startswith("not measured: the weights of alexnet")
    assert "mask_lpips" not in report.per_image.column_names
    assert "not measured: the weights of alexnet" in report.to_markdown()


def test_files_can_be_read_without_this_code(people: PackedPeople, tmp_path: Path) -> None:
    pairs = _pairs(people)
    report = evaluate_pairs({"perfect": _perfect}, people, pairs, PIXELS, training=_training(people))
    report.write(tmp_path / "evaluation")
    table = pq.read_table(tmp_path / "evaluation" / "image_quality.parquet").to_pylist()
    assert len(table) == 80 + 80 + 76
    row = next(r for r in table if r["method"] == COPY and r["pair"] == 9)
    assert (row["source"], row["target"]) == tuple(people.names[i] for i in pairs[9])
    expected = similarity.l1(_images(people, pairs[9:10, 0]), _images(people, pairs[9:10, 1]))
    assert row["l1"] == expected[0]
    data = json.loads(
        (tmp_path / "evaluation" / "image_quality.json").read_text(), parse_constant=pytest.fail
    )
    assert data["rows"]["perfect"]["l1"]["value"] == 0
    assert data["metrics"]["ssim"]["better"] == "higher"
    lines = (tmp_path / "evaluation" / "image_quality.md").read_text().splitlines()
    assert lines[0] == "| method | ssim ↑ | mask_ssim ↑ | psnr ↑ | l1 ↓ | mask_l1 ↓ |"
    assert lines[2].startswith("| perfect | 1.0000 [1.0000, 1.0000] (n = 80) |")


def test_arrays_give_the_same_as_pairs(people: PackedPeople, tiny: dict[str, Path]) -> None:
    pairs, names = _pairs(people), [*PIXELS, "frechet_tiny"]
    target, source = people.images[pairs[:, 1]], people.images[pairs[:, 0]]
    report = evaluate_images(
        {"mine": target},
        *(target, names),
        source=source,
        masks=people.mask[pairs[:, 1]],
        pids=people.pids[pairs[:, 1]],
        reference=people.images[_training(people)],
        weights=tiny,
        batch_size=9,
    )
    expected = evaluate_pairs({}, people, pairs, names, training=_training(people), weights=tiny)
    for name in PIXELS:
        assert report.rows[COPY][name] == expected.rows[COPY][name]
    ours, theirs = report.rows[COPY]["frechet_tiny"], expected.rows[COPY]["frechet_tiny"]
    assert (ours.value, ours.low) == pytest.approx((theirs.value, theirs.low), rel=1e-6)
    assert report.rows["mine"]["mask_l1"].value == 0
    without = evaluate_images({"mine": target}, target, ["l1", "mask_l1"])
    assert without.rows["mine"]["mask_l1"].note == "not measured: no mask of the targets given"


def test_user_errors_are_named(people: PackedPeople) -> None:
    pairs = _pairs(people)
    with pytest.raises(UserError, match="metric lpip: unknown"):
        evaluate_pairs({}, people, pairs, ["lpip"])
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate_pairs({}, people, pairs[:0], ["l1"])
    with pytest.raises(UserError, match=r"method mine: gave torch\.float32"):
        evaluate_pairs({"mine": lambda batch: batch.target_image.float()}, people, pairs, ["l1"])
    with pytest.raises(UserError, match="mask has 3 rows, the targets have 5"):
        evaluate_images({}, people.images[:5], ["l1"], masks=people.mask[:3])


def test_kid_and_inception_scores_with_their_floors(
    people: PackedPeople, tiny: dict[str, Path], tiny_network: nn.Module
) -> None:
    pairs, training = _pairs(people), _training(people)
    names = ["kid_tiny", "is_tiny", "mask_is_tiny"]
    report = evaluate_pairs({"half": _half}, people, pairs, names, training=training, weights=tiny)
    source, reference = _images(people, pairs[:, 0]), _images(people, training)
    distinct = _images(people, np.unique(pairs[:, 1]))
    rows, others, real = (tiny_network(i).double().numpy() for i in (source, reference, distinct))
    copies, floor = report.rows[COPY], report.rows[FLOOR]
    assert copies["kid_tiny"].value == pytest.approx(set_scores.kernel_distance(rows, others), rel=1e-5)
    assert floor["kid_tiny"].value == pytest.approx(set_scores.kernel_distance(real, others), rel=1e-5)
    parts = set_scores.parts_of(set_scores.pixel_hashes(source))
    expected = set_scores.inception_score(rows, parts).mean()
    assert copies["is_tiny"].value == pytest.approx(expected, rel=1e-6)
    half = report.rows["half"]["is_tiny"]
    assert half.low <= half.value < half.high
    assert "small sample, 80 images" in copies["is_tiny"].note
    assert report.metrics["is_tiny"].reference == ""
    assert "the distinct target images (20)" in floor["is_tiny"].note  # the score of real pictures
    masked = copies["mask_is_tiny"]
    assert (masked.count, masked.left_out) == (76, 4)  # 4 pairs lead to a picture without keypoints
    assert "mask_is_tiny" not in floor
    few = evaluate_pairs({}, people, pairs[:19], names, training=training, weights=tiny).rows[COPY]
    assert few["is_tiny"].value is None
    assert few["is_tiny"].note == "not measured: 19 usable images, at least 20 are needed"
    alone = evaluate_pairs({}, people, pairs[:1], ["l1", *names], training=training, weights=tiny).rows[COPY]
    assert (alone["l1"].count, alone["l1"].low, alone["kid_tiny"].value) == (1, None, None)


def test_fewer_images_than_a_batch_shrink_it_as_the_script_does(
    people: PackedPeople, tiny: dict[str, Path], tiny_network: nn.Module
) -> None:
    """GFLA's script: the reference comes first, its batch is no larger than the reference, then no larger
    than the generated set."""
    pairs, training = _pairs(people), _training(people)

    def value(count: int, real: int) -> tuple[float, int, str]:
        report = evaluate_pairs(
            *({}, people, pairs[:count], ["frechet_tiny_gfla"]), training=training[:real], weights=tiny
        )
        cell = report.rows[COPY]["frechet_tiny_gfla"]
        return cell.value, cell.count, cell.note

    source, reference = _images(people, pairs[:, 0]), _images(people, training)
    for count, real, used, used_real in ((11, 4, 8, 4), (5, 20, 5, 16), (6, 4, 4, 4), (3, 6, 3, 6)):
        found, number, note = value(count, real)
        assert number == used
        expected = _distance(tiny_network, source[:used], reference[:used_real])
        assert found == pytest.approx(expected, rel=1e-5)
        assert "the batch shrinks to" in note
    assert "shrinks" not in value(20, 20)[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a / 255.0, r"target: holds float64 \(5, .*not uint8 RGB"),
        (lambda a: a[..., 0], "target: holds uint8"),
        (lambda a: a[..., :1], r"target: holds uint8 \(5, 64, 32, 1\)"),
        (lambda a: a.transpose(0, 3, 1, 2), r"target: holds uint8 \(5, 3, 64, 32\)"),
        (lambda a: a.astype(np.int64), "target: holds int64"),
        (lambda a: [a[0], a[1][:40]], "target: is a list"),
    ],
)
def test_arrays_that_are_no_rgb_pictures_are_refused(change, message: str, people: PackedPeople) -> None:
    images = np.array(people.images[:5])
    with pytest.raises(UserError, match=message.replace("64, 32", r"\d+, \d+")):
        evaluate_images({}, change(images), ["l1"], source=change(images))
    with pytest.raises(
        UserError, match=message.replace("target", "reference").replace("64, 32", r"\d+, \d+")
    ):
        evaluate_images({"mine": images}, images, ["l1"], reference=change(images))


def test_truth_of_another_kind_or_size_is_refused(people: PackedPeople) -> None:
    images, mask = np.array(people.images[:5]), np.array(people.mask[:5])
    for field, array in (
        *(("masks", mask.astype(np.uint8) * 255), ("masks", mask[:, 1:]), ("parsing", mask)),
        *(("keypoints", np.zeros((5, 17, 2), np.float32)), ("keypoints", np.full((5, 18, 2), np.inf))),
    ):
        with pytest.raises(UserError, match=f"{field.rstrip('s') if field == 'masks' else field}: holds"):
            evaluate_images({"mine": images}, images, ["l1"], **{field: array})


@pytest.mark.parametrize("pids", [None, np.array([1, 1, 2, 2, 3])])
def test_a_mean_is_of_the_finite_values_and_counts_the_others(pids: np.ndarray | None) -> None:
    found = mean_of(np.array([0.5, np.nan, 0.25, np.inf, 0.75]), pids, 0)
    assert (found.value, found.count, found.left_out, found.note) == (0.5, 3, 2, "")
    assert 0.25 <= found.low < 0.5 < found.high <= 0.75
    none = mean_of(np.full(5, np.nan), pids, 0)
    assert none == MetricResult(None, left_out=5, note="not measured: no image has a finite value")
    assert mean_of(np.empty(0), None, 0).value is None
