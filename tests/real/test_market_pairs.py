"""Market-1501's real annotation files: the published pair lists line by line, the order of joints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reposer.data.keypoints import JOINTS, NECK, has_torso, read_keypoints_csv
from reposer.data.pairs import (
    development_pairs,
    official_test_pairs,
    official_train_pairs,
    read_pairs_csv,
)

LISTS = Path(__file__).parents[3] / "shared" / "data" / "market1501" / "lists"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not LISTS.is_dir(), reason="no Market-1501 here")]


def read(name: str) -> tuple[list[str], np.ndarray]:
    poses, problems = read_keypoints_csv(LISTS / name)
    assert problems == []
    return list(poses), np.stack(list(poses.values()))


@pytest.fixture(scope="module")
def train() -> tuple[list[str], np.ndarray]:
    return read("market-annotation-train.csv")


def test_training_pairs_are_the_literature_s(train: tuple[list[str], np.ndarray]) -> None:
    names, keypoints = train
    assert len(names) == 12_936
    assert int(np.isnan(keypoints).all((1, 2)).sum()) == 419
    assert int(has_torso(keypoints).sum()) == 12_116
    pairs = official_train_pairs(names, keypoints)
    assert pairs.shape == (263_632, 2)
    assert len(np.unique(pairs, axis=0)) == 263_632
    cameras = np.array([int(name.split("_c")[1][0]) for name in names])
    persons = np.array([int(name.split("_")[0]) for name in names])
    assert int((cameras[pairs[:, 0]] != cameras[pairs[:, 1]]).sum()) == 201_860
    assert (persons[pairs[:, 0]] == persons[pairs[:, 1]]).all()
    assert len(np.unique(persons[has_torso(keypoints)])) == 745
    assert len(np.unique(persons[pairs])) == 741  # four more people have one usable image only


def test_test_pairs_are_the_published_list_line_by_line() -> None:
    names, keypoints = read("market-annotation-test.csv")
    published, problems = read_pairs_csv(LISTS / "market-pairs-test.csv", known=set(names))
    pairs = official_test_pairs(names, keypoints)
    assert problems == []
    assert len(published) == 12_000
    assert [(names[a], names[b]) for a, b in pairs.tolist()] == published


def test_development_pairs_are_the_fixed_list(train: tuple[list[str], np.ndarray]) -> None:
    names, keypoints = train
    held_out = sorted({name[:4] for name in names})[-100:]
    kept = [place for place, name in enumerate(names) if name[:4] in held_out]
    assert (len(kept), int(has_torso(keypoints[kept]).sum())) == (1427, 1346)
    chosen = [names[place] for place in kept]
    assert len(official_train_pairs(chosen, keypoints[kept])) == 20_846
    pairs = development_pairs(chosen, keypoints[kept])
    published, _ = read_pairs_csv(LISTS / "dev-pairs.csv", known=set(chosen))
    assert len(published) == 2_000
    assert [(chosen[a], chosen[b]) for a, b in pairs.tolist()] == published


def test_the_last_four_joints_are_right_left_right_left(train: tuple[list[str], np.ndarray]) -> None:
    """PATN's list of names says left first; the eyes and ears of clear frontal views say otherwise."""
    _, keypoints = train
    x = {name: keypoints[:, place, 0] for place, name in enumerate(JOINTS)}
    for part in ("eye", "ear"):
        seen = ~np.isnan(x[f"right-{part}"] + x[f"left-{part}"]) & has_torso(keypoints)
        wide = seen & (np.abs(x["right-shoulder"] - x["left-shoulder"]) > 10)
        assert wide.sum() > 1000
        face = x[f"right-{part}"] - x[f"left-{part}"]
        shoulders = x["right-shoulder"] - x["left-shoulder"]
        assert (np.sign(face) == np.sign(shoulders))[wide].mean() > 0.97
    assert (keypoints[:, NECK, 1] < keypoints[:, JOINTS.index("left-hip"), 1])[has_torso(keypoints)].all()
