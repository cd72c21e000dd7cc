"""`reposer evaluate --metrics pckh` from the command line to the table; detectors with a known answer."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from reposer.annotation.interfaces import AnnotatorInfo, Poses
from reposer.annotation.keypoints import open_keypoint_detector
from reposer.data.packed import PackedPeople
from reposer.generation.pose_transfer import PoseTransfer
from reposer.metrics.similarity import pckh
from reposer.workflows.evaluate import evaluate_model, read_named_pairs


@pytest.fixture(scope="module")
def vitpose(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        out_indices=[1],
    )  # fmt: skip
    network = transformers.VitPoseForPoseEstimation(
        transformers.VitPoseConfig(backbone_config=backbone, num_labels=17)
    )
    for name, parameter in network.named_parameters():
        if "head" in name:  # peaks above the threshold
            torch.nn.init.normal_(parameter, std=1.0)
    folder = tmp_path_factory.mktemp("vitpose")
    network.save_pretrained(folder)
    return folder


class HalfRight:
    """Finds the target's joints: those on the left of the person where they are, all others far away."""

    info = AnnotatorInfo("half right", "0123456789abcdef")

    def __init__(self, truth):
        self.rows = iter(truth)

    def __call__(self, images):
        points = np.stack([next(self.rows) for _ in images])
        points[:, [5, 6, 7, 11, 12, 13, 15, 17]] += 1000
        return Poses(points, np.ones(points.shape[:2], np.float32), np.ones(len(images), np.int64))


def test_the_row_of_the_table_is_the_count_by_hand(prepared, san, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    pairs = read_named_pairs(prepared / "pairs_val.csv", people)[:5]
    truth = people.pair_batch(pairs[:, 0], pairs[:, 1]).target_keypoints.numpy()
    wrong = [5, 6, 7, 11, 12, 13, 15, 17]
    shares = []
    for row in truth:
        seen = [j for j in range(18) if not np.isnan(row[j]).any()]
        head = sum(j in seen for j in (0, 1, 14, 15, 16, 17)) >= 2  # a head seen from behind has no size
        shares.append(sum(j not in wrong for j in seen) / len(seen) if head else np.nan)
    assert np.isfinite(shares).sum() >= 2
    repeated = np.concatenate([truth] * 3)  # for the model and the two baselines, in turn
    model, detector = PoseTransfer.from_pretrained(san), HalfRight(repeated)
    report = evaluate_model(model, prepared, tmp_path, metrics=("pckh",), limit=5, detector=detector)
    assert report.settings["keypoint_detector"] == "half right 0123456789ab"
    table = pq.read_table(tmp_path / "image_quality.parquet").to_pylist()
    values = np.array([row["pckh"] for row in table if row["method"] == "model"], float)
    np.testing.assert_allclose(values, shares)
    assert report.rows["model"]["pckh"].value == pytest.approx(np.nanmean(shares))


def test_a_vitpose_from_the_command_line(run, prepared, san, vitpose, tmp_path):
    asked = ("evaluate", san, "--data", prepared, "--out", tmp_path / "out", "--limit", 4, "--threads", 1)
    code, said, err = run(*asked, "--metrics", "pckh", "--keypoint-detector", f"vitpose={vitpose}")
    assert code == 0, err
    assert "pckh" in said
    written = json.loads((tmp_path / "out" / "image_quality.json").read_text())
    assert written["settings"]["keypoint_detector"].startswith("vitpose ")
    people = PackedPeople.open(prepared / "packed")
    pairs = read_named_pairs(prepared / "pairs_val.csv", people)[:4]
    batch = people.pair_batch(pairs[:, 0], pairs[:, 1])
    generated = PoseTransfer.from_pretrained(san)(batch)
    found = open_keypoint_detector("vitpose", vitpose)(generated).keypoints
    assert not np.isnan(found).all()  # the tiny network does say something
    table = pq.read_table(tmp_path / "out" / "image_quality.parquet").to_pylist()
    values = np.array([row["pckh"] for row in table if row["method"] == "model"], float)
    np.testing.assert_allclose(values, pckh(found, batch.target_keypoints.numpy()))


def test_pckh_without_a_detector_and_a_detector_without_pckh_are_errors(
    run, prepared, san, vitpose, tmp_path
):
    asked = ("evaluate", san, "--data", prepared, "--out", tmp_path / "out")
    code, _, err = run(*asked, "--metrics", "ssim,pckh")
    assert code == 1
    assert "pckh" in err
    assert "--keypoint-detector" in err
    code, _, err = run(*asked, "--metrics", "ssim", "--keypoint-detector", f"vitpose={vitpose}")
    assert (code, "no metric reads it" in err) == (1, True)
    code, _, err = run(*asked, "--metrics", "pckh", "--keypoint-detector", "vitpose")
    assert (code, "give its folder" in err) == (1, True)
    assert not (tmp_path / "out" / "image_quality.json").exists()
