"""The table of predicted maps against scikit-learn, its baselines, and a perfect predictor."""

from __future__ import annotations

import numpy as np
import pytest
from planted import Planted, pack_planted
from sklearn.metrics import jaccard_score

from reposer.errors import UserError
from reposer.evaluation.map_quality import DONOR, SOURCE, evaluate_maps

PEOPLE = [
    Planted(1, facing="front"),
    Planted(1, facing="back", upper="coat"),
    Planted(2, facing="front", lower="skirt"),
    Planted(2, facing="left", lower="skirt", hat=True),
    Planted(3, facing="back", lower="dress", split="val"),
    Planted(3, facing="front", lower="dress", split="val"),
]
PAIRS = np.array([[4, 5], [5, 4], [0, 1]])


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return pack_planted(tmp_path_factory.mktemp("planted"), PEOPLE)


def perfect(batch):
    return batch.target_parsing.numpy(), batch.target_mask.numpy()


def test_a_perfect_predictor_and_the_baselines(people, tmp_path):
    training = np.flatnonzero(people.splits == "train")
    report = evaluate_maps({"true": perfect}, people, PAIRS, training=training, batch_size=2)
    rows = report.summary.rows
    assert list(rows) == ["true", SOURCE, DONOR]
    assert rows["true"]["miou"].value == rows["true"]["mask_iou"].value == 1
    # pair 5 -> 4: another person's nearest pose to a back is image 1, who wears a coat and pants
    truth, donors = people.parsing[PAIRS[:, 1]], people.parsing[[2, 1, 2]]
    assert donors.shape == truth.shape
    source = people.parsing[PAIRS[:, 0]]
    present = np.unique(truth)
    expected = jaccard_score(truth.ravel(), source.ravel(), labels=present, average="macro")
    assert rows[SOURCE]["miou"].value == pytest.approx(expected)
    assert rows[SOURCE]["garments_kept"].value == 1
    assert rows[SOURCE]["garments_added"].value == 0
    assert rows[DONOR]["garments_kept"].value < 1
    assert rows[DONOR]["garments_added"].value > 0
    assert report.labels["true"]["glove"] is None
    assert report.labels["true"]["dress"] == 1
    report.write(tmp_path)
    assert "| dress | 1.000 |" in (tmp_path / "map_quality.md").read_text()
    assert (tmp_path / "map_quality.json").is_file()


def test_no_pairs_are_refused(people):
    with pytest.raises(UserError, match="empty"):
        evaluate_maps({}, people, np.empty((0, 2)), training=np.array([0]))
