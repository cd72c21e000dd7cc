"""Augmentation with predicted maps: any donor policy, the donor's pose, the source's garments."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from planted import SIZE, Planted, pack_planted
from torch import nn

from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError
from reposer.generation import augmentation
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.donors import choose_donors
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.images import read_picture
from reposer.models.parsing_networks import PredictedMaps
from reposer.runtime import setup
from reposer.trained.networks import GeneratorConfig

PEOPLE = [
    Planted(1, 1, lower="skirt", facing="front"),
    Planted(1, 2, lower="skirt", facing="back"),
    Planted(2, 1, facing="left"),
    Planted(2, 2, facing=None),  # no keypoints
    Planted(3, 1, split="val"),
]


class Painter(nn.Module):
    """The target's labels as gray levels: what the generator was given can be read off the picture."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return (batch.target_parsing[:, None].expand(-1, 3, -1, -1).float() * 10 / 255) * 2 - 1


class Shift(nn.Module):
    """Predicts the source's own map, moved by what the necks are apart."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        labels = batch.source_parsing.long()
        labels = torch.stack(
            [
                row.roll(int(t[1, 1] - s[1, 1]) + 2, 0)
                for row, s, t in zip(labels, batch.source_keypoints, batch.target_keypoints, strict=True)
            ]
        )
        scores = nn.functional.one_hot(labels, 20).permute(0, 3, 1, 2).float()
        return PredictedMaps(scores, (labels > 0).float() - 0.5)


def model(people, **predictor):
    runtime = setup("cpu", "float32")
    seen = people.identity_hash("train")
    maps = MapPredictor(
        Shift(),
        GeneratorConfig(
            **{"generator": "parsing_predictor", "size": SIZE, "identity_hash": seen} | predictor
        ),
        runtime,
    )
    config = GeneratorConfig(generator="painter", size=SIZE, identity_hash=seen)
    return PoseTransfer(Painter(), config, runtime, maps, "predicted")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return folder, pack_planted(folder, PEOPLE)


@pytest.fixture(autouse=True)
def no_real_files(monkeypatch):
    """The planted folder is packed only; which real images are linked is tested elsewhere."""

    class Nothing:
        def place(self, *_):
            return []

    monkeypatch.setattr(augmentation.RealImages, "of", lambda *_: Nothing())
    monkeypatch.setattr(augmentation, "write_summary", lambda _: SUMMARY)


SUMMARY = {"real": 0, "generated": 3, "people": 2, "kept": 3, "dropped": {}}


@pytest.mark.parametrize("policy", ["any", "other_camera"])
def test_pictures_are_made_from_the_sources_map(prepared, tmp_path, policy):
    folder, people = prepared
    assert PACKED == "packed"
    report = augment(
        model(people), folder, tmp_path / "out", AugmentOptions(factor=2, policy=policy, file_format="png")
    )
    rows = np.array([0, 1, 2])  # image 3 has no keypoints, image 4 is held out
    plan = choose_donors(people, policy, 2, rows=rows)
    pictures = sorted((tmp_path / "out" / "images").glob("*.png"))
    assert len(pictures) == len(plan.source)
    for path, source in zip(pictures, plan.source.tolist(), strict=True):
        expected = np.roll(people.parsing[source], 2, 0) * 10
        assert np.array_equal(read_picture(path).pixels[..., 0], expected)
    settings = json.loads((tmp_path / "out" / "job.json").read_text())["settings"]
    assert settings["maps"] == "predicted"
    assert settings["policy"] == policy
    assert "1 images have no keypoints and are left out" in report.notes
    assert any(note.startswith("target maps are predicted") for note in report.notes)


def test_a_predictor_that_knows_held_out_people_is_refused(prepared, tmp_path):
    folder, people = prepared
    everybody = people.identity_hash("train", "val")
    with pytest.raises(UserError, match="the predictor was trained on people that this data set holds out"):
        augment(model(people, identity_hash=everybody), folder, tmp_path / "out", AugmentOptions())
    assert not (tmp_path / "out").exists()


def test_a_donors_background_does_not_go_with_predicted_maps(prepared, tmp_path):
    folder, people = prepared
    with pytest.raises(UserError, match="background donor"):
        augment(model(people), folder, tmp_path / "out", AugmentOptions(background="donor"))
